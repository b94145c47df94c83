"""Break things under load, and tell what that costs and how long it takes until all is well.

Starts the launcher and the gateway as processes of their own, on a copy of the model repository,
measures what they can do, and offers 40 % of that at random moments (with one of two processes gone
half is left): over gRPC without retries, over gRPC with the client library's retries, and through
the gateway. Then, for each case: a steady time, the fault, watching until both health endpoints say
that all is well and requests are answered again, a steady time. A launcher or a gateway that dies
is started again by a loop that stands in for a container's restart policy.

A case fails if all is not well again in time, if a request is lost that was neither on a process
when it died nor refused at once, if a client that repeats requests loses any, or if something is
left behind. The exit status is 0 if every case passed, else 1; a case that this machine lacks a
program for is skipped, and said.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from tqdm import tqdm

from detection_client import AsyncDetectionClient
from load import client_ask, closed_loop
from photos import PHOTOS, jpeg
from robustness.cases import CASES
from robustness.cases.clients import raise_file_limit
from robustness.chaos_report import print_chaos, save_chaos
from robustness.processes import left_behind
from robustness.service import Service, ServiceError
from robustness.settings import SETTINGS
from robustness.traffic import SHARES, Traffic
from robustness.trial import Case, Monitor, Result, Trial, judge

CLOSED_LOOP_USERS = 4
CAPACITY_S = 4.0
STEADY_S = 1.0
CALM_S = 1.5  # without a failure, at the end of a case
RECOVERY_S = 60.0
CLEAN_S = 15.0  # replaced processes have ten seconds for their last requests
EXPECTED = 5  # so many answers of each sender are waited for in that time


def measure_capacity(service: Service, photos: list[bytes]) -> float:
    """Images a second that a service answers to a few users."""

    async def measure() -> float:
        async with AsyncDetectionClient(service.grpc_url) as client:
            outcome = await closed_loop(client_ask(client), photos, CLOSED_LOOP_USERS, CAPACITY_S)
        return float(outcome.summary()["images_per_s"])

    return asyncio.run(measure())


def run_case(case: Case, trial: Trial) -> Result:
    """Do one case and wait until all is well again."""
    monitor, traffic = trial.monitor, trial.traffic
    time.sleep(STEADY_S)
    case.run(trial)
    hit = trial.hit if trial.hit is not None else trial.start
    changed = time.monotonic()
    deadline = changed + RECOVERY_S
    recovered = False
    # Longer where little is sent: the time has to tell something of each sender.
    calm_s = max(CALM_S, EXPECTED / (traffic.rate * min(SHARES.values())))
    while not recovered and time.monotonic() < deadline and traffic.alive:
        time.sleep(0.1)
        now = time.monotonic()
        since = monitor.well_since(hit)
        if since is None:
            continue
        well_s = now - max(since, changed)
        if well_s < max(calm_s, case.least_s):
            continue
        calm = traffic.between(now - calm_s, now)
        answered = {by: sum(not one.error for one in calm if one.by == by) for by in SHARES}
        recovered = (
            min(answered.values()) > 0
            and not any(one.error for one in calm)
            # Triton takes seconds to give up some requests of a dead process: they are this case's.
            and traffic.oldest_pending_s() < well_s
        )
    end = time.monotonic()
    left = _wait_until_clean(trial.service)
    result = judge(
        case,
        traffic.between(trial.start, end),
        trial.marks,
        hit,
        recovered=recovered,
        left=left,
        checks=trial.checks,
    )
    if monitor.problems(hit):
        since = monitor.well_since(hit)
        result.healthy_s = None if since is None else since - hit
        if not recovered:
            result.failures += [f"said: {text}" for text in list(monitor.problems(hit))[-3:]]
    if not traffic.alive:
        result.failures.append("the load has ended by itself")
    return result


def _wait_until_clean(service: Service) -> list[str]:
    deadline = time.monotonic() + CLEAN_S
    while (left := service.left_behind()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


class Chaos:
    """A run of several cases.

    Attributes:
        results: Of the cases that have been run.
        skipped: The others, with the reason.
        rates: The capacity and the load.
    """

    def __init__(self, repository: Path, output: Path, load: float, bar: tqdm[Any]) -> None:
        self._original = repository
        self._output = output
        self._load = load
        self._bar = bar
        self._photos = [jpeg(name) for name in PHOTOS]
        self.results: list[Result] = []
        self.skipped: dict[str, str] = {}
        self.rates: dict[str, float] = {}

    def run(self, cases: list[Case]) -> None:
        """Run cases, all those of a setting one after the other on the same service."""
        for setting in dict.fromkeys(case.setting for case in cases):
            some = [case for case in cases if case.setting == setting]
            if lack := SETTINGS[setting].lacks():
                self.skipped |= {case.name: lack for case in some}
                self._bar.update(len(some))
                continue
            with tempfile.TemporaryDirectory(prefix="chaos-") as name:
                try:
                    self._run_on(setting, some, Path(name))
                finally:
                    SETTINGS[setting].tidy()
                    logs = self._output / "logs" / setting
                    shutil.rmtree(logs, ignore_errors=True)
                    logs.mkdir(parents=True)
                    for log in Path(name).glob("*.log"):
                        shutil.copy(log, logs)

    def _run_on(self, setting: str, cases: list[Case], folder: Path) -> None:
        # A copy: a case may spoil it.
        repository = folder / "model_repository"
        shutil.copytree(self._original, repository, ignore=shutil.ignore_patterns("__pycache__"))
        service = SETTINGS[setting].make(repository, folder)
        with service:
            if not self.rates:
                capacity = measure_capacity(service, self._photos)
                self.rates = {"capacity_per_s": capacity, "rate_per_s": self._load * capacity}
            traffic = Traffic(service, self._photos, self.rates["rate_per_s"])
            monitor = Monitor(service)
            traffic.start()
            monitor.start()
            try:
                for case in cases:
                    self._bar.set_postfix_str(case.name)
                    trial = Trial(service, traffic, monitor, folder, repository)
                    self.results.append(run_case(case, trial))
                    self._bar.update()
            finally:
                monitor.stop()
                traffic.stop()
        if self.results and (left := left_behind(service.launcher.pids, None)):
            self.results[-1].failures += [f"left behind in the end: {what}" for what in left]


def main() -> int:
    """Run the cases from the command line; returns the exit status."""
    arguments = _parser().parse_args()
    if arguments.list:
        for case in CASES:
            print(f"{case.name:18} {case.what}")
        return 0
    chosen = [case for case in CASES if not arguments.only or case.name in arguments.only]
    raise_file_limit()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    error = ""
    with tqdm(total=len(chosen), unit="case", disable=None, file=sys.stderr) as bar:
        chaos = Chaos(arguments.model_repository, arguments.output, arguments.load, bar)
        try:
            chaos.run(chosen)
        except ServiceError as problem:
            error = str(problem)
        except KeyboardInterrupt:
            error = "ended before its time"
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    print_chaos(chaos.results, chaos.skipped, console)
    save_chaos(chaos.results, chaos.skipped, chaos.rates, arguments.output)
    console.print(f"Saved {arguments.output}/chaos.json and the processes' logs")
    if error:
        print(f"error: {error}", file=sys.stderr)
    return 1 if error or any(one.failures for one in chaos.results) else 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    names = [case.name for case in CASES]
    add("--only", nargs="+", choices=names, metavar="CASE", help="these cases; see --list")
    add("--list", action="store_true", help="list the cases and end")
    add("--load", type=float, default=0.4, help="share of the capacity (%(default)s)")
    add("--model-repository", type=Path, default=Path("model_repository"))
    add("--output", type=Path, default=Path("chaos_output"), help="folder (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
