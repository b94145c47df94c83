"""Measure the REST gateway against the ensemble over gRPC, in one run on the same photos.

Three parts: throughput and latency in closed loops at several concurrencies, the two sides by
turns; accepted and refused requests in an open loop, at 80 % of what was reached and at a multiple
of it; and the gateway's memory over many requests. The response cache is off on both sides.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmark import latency_summary, median_of
from detection_client import DetectionClient
from load import quantiles_ms
from local_server import TritonServer
from machine import processor_name, shared_memory_mb
from photos import PHOTOS, jpeg

START_TIMEOUT_S = 60
ANSWER_TIMEOUT_S = 60
HEADERS = {"Content-Type": "image/jpeg"}

Ask = Callable[[bytes], None]


@dataclass
class Outcomes:
    """What became of the requests of an open loop.

    Attributes:
        offered_per_s: Requests sent a second.
        accepted_s: Latencies of those answered with detections, from their time of arrival.
        refused_s: Latencies of those refused with 429 or 503.
        statuses: How often each status came; 0 where none came at all.
    """

    offered_per_s: float
    accepted_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def summary(self, seconds: float) -> dict[str, Any]:
        """The numbers to report."""
        p50, _, p99 = quantiles_ms(self.accepted_s)
        refused_p50, _, refused_p99 = quantiles_ms(self.refused_s)
        return {
            "offered_per_s": self.offered_per_s,
            "answered_per_s": len(self.accepted_s) / seconds,
            "p50_ms": p50,
            "p99_ms": p99,
            "refused_p50_ms": refused_p50,
            "refused_p99_ms": refused_p99,
            "refused_max_ms": max(self.refused_s, default=0.0) * 1e3,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
        }


@contextmanager
def running_gateway(server_url: str, arguments: Sequence[str]) -> Iterator[tuple[int, int]]:
    """A gateway process of its own; its port and its process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "gateway", "--server", server_url),
            *("--host", "127.0.0.1", "--port", str(port), *arguments),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1] / "clients")},
    )
    try:
        _wait_until_ready(process, port)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the gateway ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the gateway was not healthy within {START_TIMEOUT_S} s")


def closed_loop(
    make_ask: Callable[[], Ask], photos: list[bytes], concurrency: int, seconds: float
) -> dict[str, float]:
    """Ask from as many threads as ``concurrency``, each when it has its last answer."""
    latencies: list[list[float]] = [[] for _ in range(concurrency)]
    failures: list[Exception] = []
    begin = threading.Barrier(concurrency + 1)
    deadline = [0.0]

    def work(worker: int) -> None:
        ask, mine = make_ask(), latencies[worker]
        ask(photos[0])
        begin.wait()
        try:
            while (now := time.perf_counter()) < deadline[0]:
                ask(photos[(worker + len(mine)) % len(photos)])
                mine.append(time.perf_counter() - now)
        except (OSError, RuntimeError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(concurrency)]
    for thread in threads:
        thread.start()
    start = time.perf_counter()
    deadline[0] = start + seconds + 1
    begin.wait(timeout=ANSWER_TIMEOUT_S)
    start = time.perf_counter()
    deadline[0] = start + seconds
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"a request failed: {failures[0]}") from failures[0]
    return latency_summary([s for mine in latencies for s in mine], time.perf_counter() - start)


def rest_asker(port: int) -> Ask:
    """One connection to the gateway, kept open."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_TIMEOUT_S)

    def ask(photo: bytes) -> None:
        connection.request("POST", "/detect", photo, HEADERS)
        with connection.getresponse() as response:
            body = response.read()
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {body[:200]!r}")
        json.loads(body)

    return ask


async def open_loop(port: int, photos: list[bytes], rate: float, seconds: float) -> Outcomes:
    """Send requests at random moments (Poisson), whatever the answers; wait for all of them."""
    outcomes = Outcomes(offered_per_s=0.0)
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    url = f"http://127.0.0.1:{port}/detect"
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout, headers=HEADERS
    ) as session:

        async def send(photo: bytes) -> None:
            start = time.perf_counter()
            status = 0
            try:
                async with session.post(url, data=photo) as response:
                    await response.read()
                    status = response.status
            except (aiohttp.ClientError, TimeoutError):
                pass  # counted below as no answer
            took = time.perf_counter() - start
            outcomes.statuses[status] += 1
            if status == 200:
                outcomes.accepted_s.append(took)
            elif status in (429, 503):
                outcomes.refused_s.append(took)

        arrivals = random.Random(1)
        start = moment = time.perf_counter()
        tasks: list[asyncio.Task[None]] = []
        while (moment := moment + arrivals.expovariate(rate)) < start + seconds:
            await asyncio.sleep(max(0.0, moment - time.perf_counter()))
            tasks.append(asyncio.create_task(send(photos[len(tasks) % len(photos)])))
        outcomes.offered_per_s = len(tasks) / (time.perf_counter() - start)
        await asyncio.gather(*tasks)
    return outcomes


def measure_ratio(
    server_url: str, port: int, photos: list[bytes], arguments: argparse.Namespace
) -> dict[Any, Any]:
    """Throughput of both sides at each concurrency, medians over the rounds."""
    rounds = []
    with DetectionClient(server_url, timeout=ANSWER_TIMEOUT_S) as client:
        for _ in range(arguments.rounds):
            one: dict[int, Any] = {}
            for concurrency in arguments.concurrency:
                sides = {
                    "grpc": closed_loop(
                        lambda: lambda photo: void(client.detect(photo)),
                        photos,
                        concurrency,
                        arguments.seconds,
                    ),
                    "rest": closed_loop(
                        lambda: rest_asker(port), photos, concurrency, arguments.seconds
                    ),
                }
                one[concurrency] = sides
            rounds.append(one)
    result: dict[Any, Any] = median_of(rounds)
    best = {
        side: max(row[side]["images_per_s"] for row in result.values()) for side in ("grpc", "rest")
    }
    return {**result, "best_ratio": best["rest"] / best["grpc"], "best_rest": best["rest"]}


def void(_: object) -> None:
    """Take a result that only had to arrive."""


def measure_memory(pid: int, port: int, photos: list[bytes], requests: int) -> list[float]:
    """The gateway's memory in MiB before, and after each of ten shares of the requests."""
    readings = [shared_memory_mb(pid)]
    left = threading.Semaphore(0)

    def work() -> None:
        ask = rest_asker(port)
        count = 0
        while left.acquire(blocking=False):
            ask(photos[count % len(photos)])
            count += 1

    for _ in range(10):
        left.release(requests // 10)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        readings.append(shared_memory_mb(pid))
    return readings


def print_results(results: dict[str, Any]) -> None:
    """Print what was measured as tables."""
    console = Console()
    console.print(f"{os.cpu_count()} cores of {processor_name()}")
    if ratio := results.get("ratio"):
        table = Table(title=f"Closed loop; best against best: {ratio['best_ratio']:.2f}")
        for column in ("concurrency", "side", "images/s", "p50 ms", "p99 ms", "of gRPC"):
            table.add_column(column, justify="right")
        for concurrency, sides in ratio.items():
            if not isinstance(sides, dict):
                continue
            for side, row in sides.items():
                table.add_row(
                    *(str(concurrency), side, f"{row['images_per_s']:.1f}"),
                    *(f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}"),
                    f"{row['images_per_s'] / sides['grpc']['images_per_s']:.2f}",
                )
        console.print(table)
    if overload := results.get("overload"):
        table = Table(title="Open loop")
        names = ("", "offered/s", "answered/s", "p50 ms", "p99 ms", "refused p99 ms", "statuses")
        for column in names:
            table.add_column(column, justify="right")
        for title, row in overload.items():
            table.add_row(
                *(title, f"{row['offered_per_s']:.0f}", f"{row['answered_per_s']:.1f}"),
                *(f"{row['p50_ms']:.1f}", f"{row['p99_ms']:.1f}", f"{row['refused_p99_ms']:.1f}"),
                ", ".join(f"{count} x {status}" for status, count in row["statuses"].items()),
            )
        console.print(table)
    if memory := results.get("memory_mib"):
        console.print("Memory in MiB:", " ".join(f"{value:.1f}" for value in memory))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the measurements that were asked for."""
    photos = [jpeg(name) for name in PHOTOS]
    results: dict[str, Any] = {"photo_bytes": statistics.mean(map(len, photos))}
    with (
        TritonServer(arguments.model_repository) as server,
        running_gateway(server.grpc_url, arguments.gateway_arguments) as (port, pid),
    ):
        results["ratio"] = measure_ratio(server.grpc_url, port, photos, arguments)
        if "overload" in arguments.parts:
            capacity = results["ratio"]["best_rest"]
            loads = {
                "0.8 x capacity": 0.8,
                f"{arguments.overload:g} x capacity": arguments.overload,
                "0.8 x, afterwards": 0.8,
            }
            results["overload"] = {
                name: asyncio.run(
                    open_loop(port, photos, capacity * factor, arguments.open_seconds)
                ).summary(arguments.open_seconds)
                for name, factor in loads.items()
            }
        if "memory" in arguments.parts:
            results["memory_mib"] = measure_memory(pid, port, photos, arguments.requests)
    return results


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-repository", type=Path, default=Path("model_repository"))
    add("--parts", nargs="*", choices=["overload", "memory"], default=["overload"])
    add("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8])
    add("--seconds", type=float, default=5, help="length of one closed loop")
    add("--rounds", type=int, default=3, help="of the closed loops; medians are reported")
    add("--open-seconds", type=float, default=15, help="length of one open loop")
    add("--overload", type=float, default=5, help="offered load, in multiples of the capacity")
    add("--requests", type=int, default=20_000, help="for the part memory")
    add("--output", type=Path, default=Path("benchmark_output"))
    add("gateway_arguments", nargs="*", help="options for the gateway, after --")
    arguments = parser.parse_args()
    results = run(arguments)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "gateway.json").write_text(json.dumps(results, indent=2) + "\n")
    print_results(results)
    print(f"\nSaved {arguments.output}/gateway.json")


if __name__ == "__main__":
    main()
