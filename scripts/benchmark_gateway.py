"""Measure the REST gateway against the ensemble over gRPC, in one run on the same photos.

Throughput and latency in closed loops at several concurrencies, the two sides by turns, and with
--requests the gateway's memory over many of them. The response cache is off on both sides. What
becomes of more requests than it can answer is measured by benchmark_overload.py.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmark import median_of
from detection_client import AsyncDetectionClient
from gateway_process import running_gateway
from load import Ask, client_ask, closed_loop, http_ask
from local_server import ServerError, TritonServer
from machine import processor_name, shared_memory_mb
from photos import PHOTOS, jpeg

TIMEOUT_S = 60
WARM_UP_S = 1.0
READINGS = 10  # of the memory
MEMORY_CONCURRENCY = 4


async def measure(
    server_url: str, port: int, pid: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Do the measurements that were asked for."""
    photos = [jpeg(name) for name in PHOTOS]
    loops = 2 * options.rounds * len(options.concurrency)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            AsyncDetectionClient(server_url, timeout=TIMEOUT_S, retries=0)
        )
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            )
        )
        url, headers = f"http://127.0.0.1:{port}/detect", {"Content-Type": "image/jpeg"}
        sides = {"grpc": client_ask(client), "rest": http_ask(session, url, headers)}
        steps = loops + (READINGS if options.requests else 0)
        progress = stack.enter_context(
            tqdm(total=steps, desc="gateway", unit="run", file=sys.stderr, disable=None)
        )
        rounds = []
        for _ in range(options.rounds):
            one: dict[int, dict[str, Any]] = {}
            for concurrency in options.concurrency:
                one[concurrency] = {}
                for side, ask in sides.items():
                    row = await _closed_loop(ask, photos, concurrency, options.seconds)
                    one[concurrency][side] = row
                    progress.update()
            rounds.append(one)
        rows = median_of(rounds)
        best = {side: max(row[side]["images_per_s"] for row in rows.values()) for side in sides}
        results: dict[str, Any] = {
            "photo_bytes": statistics.mean(map(len, photos)),
            "ratio": {**rows, "best_ratio": best["rest"] / best["grpc"]},
        }
        if options.requests:
            results["memory_mib"] = await _memory(
                sides["rest"], pid, photos, options.requests, progress
            )
        return results


async def _closed_loop(
    ask: Ask, photos: Sequence[bytes], concurrency: int, seconds: float
) -> dict[str, float]:
    await closed_loop(ask, photos, concurrency, WARM_UP_S)
    summary = (await closed_loop(ask, photos, concurrency, seconds)).summary()
    if summary["errors"]:
        raise ServerError(f"requests failed: {summary['errors']}")
    return {name: summary[name] for name in ("images_per_s", "p50_ms", "p95_ms", "p99_ms")}


async def _memory(
    ask: Ask, pid: int, photos: Sequence[bytes], requests: int, progress: tqdm[Any]
) -> list[float]:
    """The gateway's memory in MiB before, and after each share of the requests."""
    readings = [shared_memory_mb(pid)]

    async def work(worker: int) -> None:
        for number in range(worker, requests // READINGS, MEMORY_CONCURRENCY):
            if error := await ask(photos[number % len(photos)]):
                raise ServerError(f"a request failed: {error}")

    for _ in range(READINGS):
        await asyncio.gather(*(work(worker) for worker in range(MEMORY_CONCURRENCY)))
        readings.append(shared_memory_mb(pid))
        progress.update()
    return readings


def print_results(results: dict[str, Any]) -> None:
    """Print what was measured."""
    console = Console()
    console.print(f"{os.cpu_count()} cores of {processor_name()}")
    ratio = results["ratio"]
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
    if memory := results.get("memory_mib"):
        console.print("Memory in MiB:", " ".join(f"{value:.1f}" for value in memory))


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-repository", type=Path, default=Path("model_repository"))
    add("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8])
    add("--seconds", type=float, default=5, help="length of one closed loop")
    add("--rounds", type=int, default=3, help="of the closed loops; medians are reported")
    add("--requests", type=int, default=0, help="watch the memory over so many more")
    add("--output", type=Path, default=Path("benchmark_output"))
    add("gateway_arguments", nargs="*", help="options for the gateway, after --")
    options = parser.parse_args()
    try:
        with (
            TritonServer(options.model_repository) as server,
            running_gateway(server.grpc_url, options.gateway_arguments) as (port, pid),
        ):
            results = asyncio.run(measure(server.grpc_url, port, pid, options))
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "gateway.json").write_text(json.dumps(results, indent=2) + "\n")
    print_results(results)
    print(f"\nSaved {options.output}/gateway.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
