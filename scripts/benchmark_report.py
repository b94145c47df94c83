"""The benchmark's table and plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

__all__ = ["print_report", "save_plot"]

CPU_PARTS = ("preprocess", "detector", "postprocess", "triton", "client")
COLOURS = ("#4c78a8", "#72b7b2", "#f58518", "#b279a2", "#9d9da1")


def _cpu_of(measured: dict[str, Any]) -> dict[str, float]:
    return {
        **measured["server_cpu_ms_per_image"],
        "client": measured["client_cpu_ms_per_image"],
    }


def print_report(results: dict[str, Any]) -> None:
    """Print what was measured as tables, medians over the rounds."""
    console = Console()
    machine, photos = results["machine"], results["photos"]
    console.print(
        f"\n{machine['cores']} cores of {machine['processor']};"
        f" {photos['count']} photos, {photos['mean_bytes'] / 1000:.0f} kB each;"
        f" {len(results['rounds'])} rounds of {results['seconds']:g} s, medians"
    )
    speed = Table(title="Throughput and latency")
    for column in ("", "images/s", "of limit", "p50 ms", "p95 ms", "p99 ms", "CPU ms/image"):
        speed.add_column(column, justify="left" if not column else "right")
    for title, key in (("in process, 1 core", "single"), ("in process, all cores", "limit")):
        row = results[key]
        ratio = row["images_per_s"] / results["limit"]["images_per_s"]
        speed.add_row(title, *_speed_cells(row, ratio, row["cpu_ms_per_image"]))
    for concurrency, row in results["ensemble"].items():
        cpu = sum(_cpu_of(row).values())
        speed.add_row(
            f"ensemble, concurrency {concurrency}", *_speed_cells(row, row["ratio_to_limit"], cpu)
        )
    console.print(speed)

    cpu_table = Table(title="CPU milliseconds an image")
    for column in ("", *CPU_PARTS, "sum"):
        cpu_table.add_column(column, justify="left" if not column else "right")
    inside = results["in_process_cpu_ms_per_image"]
    cpu_table.add_row(
        "in process",
        *(f"{inside[part]:.2f}" if part in inside else "" for part in CPU_PARTS),
        f"{sum(inside.values()):.2f}",
    )
    for concurrency, row in results["ensemble"].items():
        cpu_row = _cpu_of(row)
        cpu_table.add_row(
            f"ensemble, concurrency {concurrency}",
            *(f"{cpu_row[part]:.2f}" for part in CPU_PARTS),
            f"{sum(cpu_row.values()):.2f}",
        )
    console.print(cpu_table)

    stage_table = Table(title="Triton's own times a request: queue + compute in ms (mean batch)")
    stage_table.add_column("")
    for stage in CPU_PARTS[:3]:
        stage_table.add_column(stage, justify="right")
    for concurrency, row in results["ensemble"].items():
        stage_table.add_row(
            f"ensemble, concurrency {concurrency}",
            *(
                f"{times['queue_ms']:.2f} + {times['compute_ms']:.2f} ({times['mean_batch']:.2f})"
                for times in row["stages"].values()
            ),
        )
    console.print(stage_table)


def _speed_cells(row: dict[str, Any], ratio: float, cpu_ms: float) -> tuple[str, ...]:
    return (
        f"{row['images_per_s']:.1f}",
        f"{ratio:.2f}",
        f"{row['p50_ms']:.1f}",
        f"{row['p95_ms']:.1f}",
        f"{row['p99_ms']:.1f}",
        f"{cpu_ms:.2f}",
    )


def save_plot(results: dict[str, Any], path: Path) -> None:
    """Save throughput, latency and CPU time as one picture."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    ensemble = results["ensemble"]
    labels = [str(concurrency) for concurrency in ensemble]
    figure, (speed, latency, cpu) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")

    limit = results["limit"]["images_per_s"]
    bars = speed.bar(labels, [row["images_per_s"] for row in ensemble.values()], color=COLOURS[0])
    ratios = [f"{row['ratio_to_limit']:.2f}" for row in ensemble.values()]
    speed.bar_label(bars, ratios, label_type="center", color="white", fontweight="bold")
    speed.axhline(limit, color="black", linestyle="--", label="in process, all cores")
    speed.axhline(0.8 * limit, color="grey", linestyle=":", label="0.8 of it")
    speed.set(title="Throughput", xlabel="concurrency (gRPC)", ylabel="images/s")
    speed.set_ylim(0, limit * 1.3)
    speed.legend(loc="upper left")

    for quantile, colour in zip(("p50", "p95", "p99"), COLOURS, strict=False):
        values = [row[f"{quantile}_ms"] for row in ensemble.values()]
        latency.plot(labels, values, marker="o", color=colour, label=quantile)
    latency.axhline(
        results["single"]["p50_ms"], color="black", linestyle="--", label="in process, 1 core, p50"
    )
    latency.set(title="Latency", xlabel="concurrency (gRPC)", ylabel="ms")
    latency.set_ylim(0)
    latency.legend(loc="upper left")

    rows = [results["in_process_cpu_ms_per_image"], *(_cpu_of(row) for row in ensemble.values())]
    names = ["in process", *labels]
    bottom = [0.0] * len(rows)
    for part, colour in zip(CPU_PARTS, COLOURS, strict=True):
        heights = [row.get(part, 0.0) for row in rows]
        cpu.bar(names, heights, bottom=bottom, color=colour, label=part)
        bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
    cpu.set(title="CPU time", xlabel="concurrency (gRPC)", ylabel="CPU ms an image")
    cpu.set_ylim(0, max(bottom) * 1.45)
    cpu.legend(loc="upper center", ncols=3, fontsize="small")

    figure.savefig(path, dpi=120)
    plt.close(figure)
