"""Run the server and the gateway under steady load for long, and tell whether anything grows.

Starts the launcher and the gateway as processes of their own, measures what they can do in a
closed loop, then offers 80 % of that at random moments: 60 % over gRPC, 20 % through the gateway
and 20 % over HTTP, each request a photo. At each interval it samples the memory, threads and file
descriptors of every process, /dev/shm, /tmp, latencies, errors, Triton's own counts and the CPU
time that the hypervisor gave to others.

The run passes if no request failed, every process lived through, and memory, threads, file
descriptors, /dev/shm and p99 stayed flat. Memory is flat if, over the second half of the run, its
Theil-Sen slope is below 1 % of its size (at least 1 MiB) in half an hour, or its rise is within
the noise of the samples, and it has not risen by more than 5 % (at least 4 MiB) all the same. p99
is flat if its median over the last third of the intervals is at most 20 % (or three standard
errors) above that over the first third, the first tenth left out. Runs of a few minutes are too
short to tell whether something grows; errors count all the same.

Ctrl-C ends it early with a report of what there is. The exit status is 0 if it passed, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from tqdm import tqdm

from load import closed_loop
from photos import PHOTOS, jpeg
from robustness.intervals import askers, run_interval
from robustness.sampling import Sampler
from robustness.service import Service, ServiceError
from robustness.soak_report import print_soak, save_soak
from robustness.soak_verdict import Soak, judge_soak

CLOSED_LOOP_USERS = 4
SETTLE_S = 1.0  # for Triton to count its last answers
# A soak offers less than the capacity, so nothing is to be refused in a burst: see docs/gateway.md.
GATEWAY_OPTIONS = ("--max-wait", "10")


async def run_soak(service: Service, soak: Soak, arguments: argparse.Namespace) -> None:
    """Measure the capacity, then offer load until the end or until a signal."""
    photos = [jpeg(name) for name in PHOTOS]
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for end in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(end, ending.set)
    async with askers(service) as asks:
        measured = await closed_loop(
            asks["gRPC"], photos, CLOSED_LOOP_USERS, arguments.capacity_seconds
        )
        soak.capacity_per_s = measured.summary()["images_per_s"]
        soak.rate_per_s = arguments.rate or arguments.load * soak.capacity_per_s
        if soak.rate_per_s <= 0:
            raise ServiceError("no request was answered in the closed loop")
        sampler = Sampler(service)
        # Before the first request, so that Triton's counts from then on are those of the load.
        soak.samples.append(await asyncio.to_thread(sampler.take))
        start = loop.time()
        tasks: list[asyncio.Task[None]] = []
        count = max(1, round(soak.minutes * 60 / soak.interval_s))
        with tqdm(total=count * soak.interval_s, unit="s", disable=None, file=sys.stderr) as bar:

            async def offer(number: int, t_s: float) -> None:
                interval = await run_interval(
                    asks, photos, soak.rate_per_s, soak.interval_s, number, t_s
                )
                soak.intervals.append(interval)
                failed = sum(soak.errors.values())
                bar.set_postfix_str(f"p99 {interval.p99_ms:.0f} ms, {failed} failed")
                bar.update(soak.interval_s)

            for number in range(count):
                t_s = loop.time() - start
                # Not awaited: the last answers of an interval come during the next.
                tasks.append(asyncio.create_task(offer(number, t_s)))
                if number:
                    soak.samples.append(await asyncio.to_thread(sampler.take))
                with contextlib.suppress(TimeoutError):
                    due = start + (number + 1) * soak.interval_s
                    await asyncio.wait_for(ending.wait(), max(0.0, due - loop.time()))
                if ending.is_set():
                    soak.interrupted = True
                    break
            if soak.interrupted:
                # What is left of the last interval is not offered, and its answers do not count.
                tasks[-1].cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error
        await asyncio.sleep(SETTLE_S)
        soak.samples.append(await asyncio.to_thread(sampler.take))


def main() -> int:
    """Run the soak from the command line; returns the exit status."""
    arguments = _parser().parse_args()
    soak = Soak(minutes=arguments.minutes, interval_s=arguments.interval)
    console = Console()
    if not console.is_terminal:
        console = Console(width=100)
    error = ""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        service = Service(arguments.model_repository, Path(folder), gateway_options=GATEWAY_OPTIONS)
        try:
            with service:
                asyncio.run(run_soak(service, soak, arguments))
        except ServiceError as problem:
            error = str(problem)
        except KeyboardInterrupt:
            error = "ended before load was offered"
    left = service.left_behind()
    if error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    rows, problems = judge_soak(soak)
    problems += [f"left behind: {what}" for what in left]
    print_soak(soak, rows, problems, console)
    save_soak(soak, rows, problems, arguments.output)
    console.print(f"Saved {arguments.output}/soak.json, soak.png and the samples as CSV")
    return 1 if problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--minutes", type=_positive, default=30, help="how long to offer load (%(default)s)")
    add("--load", type=_positive, default=0.8, help="share of the capacity (%(default)s)")
    add("--rate", type=_positive, help="requests a second, in place of a share of the capacity")
    add("--interval", type=_positive, default=15, help="seconds between samples (%(default)s)")
    add(
        "--capacity-seconds",
        type=_positive,
        default=10,
        help="length of the closed loop (%(default)s)",
    )
    add("--model-repository", type=Path, default=Path("model_repository"))
    add("--output", type=Path, default=Path("soak_output"), help="folder (%(default)s)")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
