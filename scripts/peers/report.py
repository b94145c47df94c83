"""The comparison's table and plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich import box
from rich.console import Console
from rich.table import Table

from peers.rounds import TRIAL_CONCURRENCY

__all__ = ["print_report", "save_plot"]

# Okabe and Ito's colours, which colour-blind people tell apart; each side has its own marker too.
_STYLES = {
    "ensemble": ("#0072B2", "o"), "ensemble, HTTP": ("#CC79A7", "P"),
    "ensemble, INT8": ("#56B4E9", "D"), "ensemble, OpenVINO": ("#D55E00", "v"),
    "Flask": ("#009E73", "^"), "LitServe": ("#E69F00", "s"),
}  # fmt: skip
_WIDTH = 110  # of the table: narrower, its columns would break
_RATIOS = ("limit", "flask", "litserve")
_COLUMNS = (
    "images/s", "limit", "Flask", "LitServe", "p50 ms", "p99 ms", "CPU ms", "cores", "errors",
)  # fmt: skip


def print_report(results: Mapping[str, Any]) -> None:
    """Print what was measured, medians over the rounds."""
    console = Console()
    if console.width < _WIDTH:
        console = Console(width=_WIDTH)
    machine, photos, limit = results["machine"], results["photos"], results["limit"]
    console.print(
        f"\n{machine['cores']} cores of {machine['processor']}; {photos['count']} photos,"
        f" {photos['mean_bytes'] / 1000:.0f} kB each; {results['rounds_count']} rounds of"
        f" {results['seconds']:g} s, medians"
    )
    for name, setting in results["settings"].items():
        console.print(f"{name}: {setting['used']}")
        for title, rate in setting["tried"].items():
            console.print(f"    {rate:6.1f} images/s at concurrency {TRIAL_CONCURRENCY}: {title}")
    for name, notes in results["notes"].items():
        for note in notes:
            console.print(f"{name}: {note}")
    table = Table(
        title="Ensemble and peers",
        caption="limit, Flask, LitServe: throughput over theirs, within the rounds. CPU ms: of the"
        " side's processes, an image. cores: busy with the side and its client",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    table.add_row(
        "the limit", f"{limit['images_per_s']:.1f}", "1.00", "", "",
        f"{limit['p50_ms']:.1f}", f"{limit['p99_ms']:.1f}", f"{limit['cpu_ms_per_image']:.1f}",
    )  # fmt: skip
    for level in results["concurrency"]:
        table.add_section()
        table.add_row(f"[bold]concurrency {level}")
        for name, levels in results["sides"].items():
            row = levels[level]
            ratio = row["ratios"]
            table.add_row(
                name,
                f"{row['images_per_s']:.1f}",
                *(f"{ratio[key]:.2f}" if key in ratio else "" for key in _RATIOS),
                *(f"{row[key]:.1f}" for key in ("p50_ms", "p99_ms", "cpu_ms_per_image")),
                f"{row['cores_busy']:.2f}",
                ", ".join(f"{count} x {kind}" for kind, count in row["errors"].items()) or "0",
            )
    console.print(table)


def save_plot(results: Mapping[str, Any], path: Path) -> None:
    """Plot throughput and p99 against concurrency, a line a side."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    levels = results["concurrency"]
    figure, (rate, tail) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for name, rows in results["sides"].items():
        colour, marker = _STYLES[name]
        style = {"color": colour, "marker": marker, "linewidth": 1.8, "label": name}
        rate.plot(levels, [rows[level]["images_per_s"] for level in levels], **style)
        tail.plot(levels, [rows[level]["p99_ms"] for level in levels], **style)
    rate.axhline(
        results["limit"]["images_per_s"],
        color="black",
        linestyle="--",
        linewidth=1.2,
        label="in process, all cores",
    )
    rate.set_title("Throughput, images/s")
    rate.set_ylim(bottom=0)
    tail.set_title("p99 latency, ms")
    tail.set_yscale("log")
    tail.yaxis.set_major_formatter(mpl.ticker.ScalarFormatter())
    tail.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
    tail.yaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    for axes in (rate, tail):
        axes.set_xscale("log", base=2)
        axes.set_xticks(levels, [str(level) for level in levels])
        axes.set_xlabel("requests under way")
        axes.grid(visible=True, which="both", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = rate.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
