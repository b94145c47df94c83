"""What becomes of requests when many more come than can be answered.

Measures in one run, over gRPC to Triton and over REST to the gateway: the throughput of closed
loops, then requests at random moments (Poisson) at 80 % of that, at a multiple of it, and at 80 %
again. What is refused, how soon, and what the accepted ones wait is told apart; goodput is what was
answered well a second, as a share of the best throughput or of what was offered, if that was less.
The sender works on a core of its own and the servers on the others: on a small machine it would
otherwise take their time, and more of it the more it sends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from detection_client import AsyncDetectionClient
from gateway_process import running_gateway
from load import Ask, client_ask, closed_loop, http_ask, open_loop
from local_server import ServerError, TritonServer
from machine import processor_name
from photos import PHOTOS, jpeg

TIMEOUT_S = 30.0


async def measure(ask: Ask, options: argparse.Namespace, progress: tqdm[Any]) -> dict[str, Any]:
    """The best throughput, and what becomes of each load, in the order of the loads."""
    photos = [jpeg(name) for name in PHOTOS]
    await closed_loop(ask, photos, 4, 2)  # warms up
    best = 0.0
    for concurrency in options.concurrency:
        loop = await closed_loop(ask, photos, concurrency, options.seconds)
        best = max(best, loop.summary()["images_per_s"])
        progress.update()
    if not best:
        raise ServerError("the server answered nothing")
    rows = []
    for factor in (0.8, options.overload, 0.8):
        outcome = await open_loop(ask, photos, factor * best, options.open_seconds)
        row = outcome.summary()
        offered_or_best = min(row["offered_per_s"], best)
        rows.append({"factor": factor, "goodput": row["images_per_s"] / offered_or_best, **row})
        progress.update()
    return {"best": best, "rows": rows}


async def over_grpc(
    url: str, options: argparse.Namespace, progress: tqdm[Any]
) -> list[dict[str, Any]]:
    """Triton, asked by the client library."""
    async with AsyncDetectionClient(url, timeout=TIMEOUT_S, retries=0) as client:
        ask = client_ask(client)
        return [await measure(ask, options, progress) for _ in range(options.rounds)]


async def over_rest(
    port: int, options: argparse.Namespace, progress: tqdm[Any]
) -> list[dict[str, Any]]:
    """The gateway, asked with images as bodies."""
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
    ) as session:
        url, headers = f"http://127.0.0.1:{port}/detect", {"Content-Type": "image/jpeg"}
        ask = http_ask(session, url, headers)
        return [await measure(ask, options, progress) for _ in range(options.rounds)]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Do all measurements."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[:-1])  # what is started now inherits it
    steps = 2 * options.rounds * (len(options.concurrency) + 3)
    results: dict[str, Any] = {}
    with (
        TritonServer(options.model_repository) as server,
        running_gateway(server.grpc_url, options.gateway_arguments) as (port, _),
        tqdm(total=steps, desc="overload", unit="run", file=sys.stderr, disable=None) as progress,
    ):
        os.sched_setaffinity(0, cores[-1:])
        triton = server.pid
        results["gRPC"] = asyncio.run(over_grpc(server.grpc_url, options, progress))
        results["REST"] = asyncio.run(over_rest(port, options, progress))
        results["restarts"] = int(server.pid != triton)
    return results


def print_results(results: dict[str, Any]) -> None:
    """Print one table a way of asking, medians over the rounds."""
    console = Console()
    servers = max(1, len(os.sched_getaffinity(0)))
    console.print(f"servers on all but {servers} core of {os.cpu_count()}, {processor_name()}")
    for way in ("gRPC", "REST"):
        rounds = results[way]
        best = statistics.median(one["best"] for one in rounds)
        table = Table(title=f"{way}: best {best:.1f} images/s", title_justify="left")
        for column in ("load", "offered/s", "good/s", "goodput", "p50 ms", "p99 ms"):
            table.add_column(column, justify="right")
        for column in ("failed", "p99 ms"):
            table.add_column(column, justify="right")
        kinds = sorted({kind for one in rounds for row in one["rows"] for kind in row["errors"]})
        for rows in zip(*(one["rows"] for one in rounds), strict=True):

            def middle(name: str, rows: Any = rows) -> float:
                return float(statistics.median(row[name] for row in rows))

            refused = statistics.median(sum(row["errors"].values()) for row in rows)
            table.add_row(
                *(f"{rows[0]['factor']:g} x", f"{middle('offered_per_s'):.0f}"),
                *(f"{middle('images_per_s'):.1f}", f"{middle('goodput'):.2f}"),
                *(f"{middle('p50_ms'):.0f}", f"{middle('p99_ms'):.0f}"),
                *(f"{refused:.0f} of {middle('requests'):.0f}", f"{middle('failed_p99_ms'):.0f}"),
            )
        console.print(table)
        console.print(f"failed: {', '.join(kinds) or 'none'}")
    if results["restarts"]:
        console.print("Triton died under the load and was started again.")


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-repository", type=Path, default=Path("model_repository"))
    add("--overload", type=float, default=5, help="in multiples of the best throughput")
    add("--concurrency", type=int, nargs="+", default=[4, 8], help="of the closed loops")
    add("--seconds", type=float, default=5, help="length of a closed loop")
    add("--open-seconds", type=float, default=15, help="length of an open loop")
    add("--rounds", type=int, default=1, help="medians over them are printed")
    add("--output", type=Path, default=Path("benchmark_output"))
    add("gateway_arguments", nargs="*", help="options for the gateway, after --")
    options = parser.parse_args()
    try:
        results = run(options)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_results(results)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "overload.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"Saved {options.output}/overload.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
