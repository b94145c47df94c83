"""How many cores a rate of requests takes at a limit of latency, by a model that is checked.

Measures a running ensemble: its latency unhurried, its throughput when saturated, and then at a
few rates of random arrivals (a Poisson process) what latencies it really has. The model (M/G/c, see
scripts/queueing.py) is given the first two and predicts the others; both are printed side by side.
With --rate and --p99-ms it says how many cores like these are needed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from detection_client import AsyncDetectionClient
from load import client_ask, closed_loop, open_loop
from local_server import ServerError, TritonServer
from machine import processor_name
from photos import PHOTOS, jpeg
from queueing import Station, servers_needed

TIMEOUT_S = 60.0


async def measure(url: str, options: argparse.Namespace, progress: tqdm[Any]) -> dict[str, Any]:
    """The station's figures, and what it does at each share of its capacity."""
    photos = [jpeg(name) for name in PHOTOS]
    async with AsyncDetectionClient(url, timeout=TIMEOUT_S) as client:
        ask = client_ask(client)
        await closed_loop(ask, photos, options.cores, 2)  # warms up
        unhurried = await closed_loop(ask, photos, 1, options.seconds)
        progress.update()
        saturated = await closed_loop(ask, photos, 4 * options.cores, options.seconds)
        progress.update()
        latencies = unhurried.latencies_s
        if len(latencies) < 2 or len(saturated.latencies_s) < 2:
            kinds = ", ".join({**unhurried.errors, **saturated.errors}) or "too little time"
            raise ServerError(f"{url} does not answer ({kinds})")
        capacity = saturated.summary()["images_per_s"]
        station = Station(
            servers=options.cores,
            service_s=options.cores / capacity,
            variation=statistics.stdev(latencies) / statistics.mean(latencies),
            latency_s=statistics.median(latencies),
        )
        rows = []
        for share in options.load:
            rate = share * capacity
            outcome = await open_loop(ask, photos, rate, options.open_seconds)
            measured = outcome.summary()
            # The arrivals that really came: random, they are not exactly what was asked for.
            came = measured["offered_per_s"]
            rows.append(
                {
                    "share": share,
                    "measured": measured,
                    "model_p50_ms": station.response_s(came, 0.5) * 1e3,
                    "model_p95_ms": station.response_s(came, 0.95) * 1e3,
                    "model_p99_ms": station.response_s(came, 0.99) * 1e3,
                }
            )
            progress.update()
    return {"station": station, "capacity": capacity, "rows": rows}


def plan(station: Station, rates: list[float], limits_ms: list[float]) -> list[list[str]]:
    """The cores for each rate, one column for each limit of the p99."""
    table = []
    for rate in rates:
        row = [f"{rate:g}"]
        for limit in limits_ms:
            cores = servers_needed(station, rate, limit / 1e3, 0.99)
            row.append("-" if cores is None else f"{cores}")
        table.append(row)
    return table


def print_results(results: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the model against the measurement, and the plan."""
    console, station = Console(), results["station"]
    console.print(
        f"{options.cores} cores of {processor_name()}: {station.latency_s * 1e3:.1f} ms unhurried"
        f" (varies by {station.variation:.2f}), {results['capacity']:.1f} images/s saturated,"
        f" {station.service_s * 1e3:.1f} ms of a core an image"
    )
    table = Table(title="Random arrivals: measured, and by the model", title_justify="left")
    for column in ("load", "requests/s", "p50 ms", "model", "p95 ms", "model", "p99 ms", "model"):
        table.add_column(column, justify="right")
    table.add_column("failed", justify="right")
    for row in results["rows"]:
        measured, cells = row["measured"], []
        for quantile in ("p50_ms", "p95_ms", "p99_ms"):
            cells += [f"{measured[quantile]:.0f}", f"{row[f'model_{quantile}']:.0f}"]
        failed = sum(measured["errors"].values())
        table.add_row(
            f"{row['share']:.0%}", f"{measured['offered_per_s']:.1f}", *cells, str(failed)
        )
    console.print(table)
    table = Table(title="Cores like these for a rate and a p99", title_justify="left")
    table.add_column("requests/s", justify="right")
    for limit in options.p99_ms:
        table.add_column(f"{limit:g} ms", justify="right")
    for cells in plan(station, options.rate, options.p99_ms):
        table.add_row(*cells)
    console.print(table)
    console.print(
        "A dash: the limit is under the latency of a request that does not wait. The model takes"
        " cores to be alike and alone: leave some of them free for what else the machine does."
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the server that was given, or one of its own."""
    steps = 2 + len(options.load)
    with tqdm(total=steps, desc="sizing", unit="run", file=sys.stderr, disable=None) as progress:
        if options.server:
            return asyncio.run(measure(options.server, options, progress))
        with TritonServer(options.model_repository) as server:
            return asyncio.run(measure(server.grpc_url, options, progress))


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"a number above 0 is wanted, not {text}")
    return value


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--server", help="a running server, such as grpc://127.0.0.1:8001; default: one of its own")
    add("--model-repository", type=Path, default=Path("model_repository"), help="of its own server")
    add("--cores", type=int, default=os.cpu_count() or 1, help="that the server has (%(default)s)")
    add("--load", type=_positive, nargs="+", default=[0.3, 0.5, 0.7, 0.8, 0.9],
        help="shares of the capacity to measure at")  # fmt: skip
    add("--rate", type=_positive, nargs="+", default=[50.0, 100.0, 200.0, 500.0, 1000.0],
        help="requests a second to plan for")  # fmt: skip
    add("--p99-ms", type=_positive, nargs="+", default=[50.0, 100.0, 200.0, 500.0],
        help="limits of the p99 to plan for")  # fmt: skip
    add("--seconds", type=_positive, default=6.0, help="length of the closed loops")
    add("--open-seconds", type=_positive, default=30.0, help="length of each rate of arrivals")
    add("--output", type=Path, default=Path("benchmark_output"))
    options = parser.parse_args()
    try:
        results = run(options)
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_results(results, options)
    options.output.mkdir(parents=True, exist_ok=True)
    station: Station = results["station"]
    saved = {**results, "station": {name: getattr(station, name) for name in station.__slots__}}
    (options.output / "sizing.json").write_text(json.dumps(saved, indent=2) + "\n")
    print(f"Saved {options.output}/sizing.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
