"""The picture of a tuning: what each step gave, and the end's curve beside the start's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

from tuning.result import Result
from tuning.settings import show

__all__ = ["save_plot"]

_KEPT, _NOT = "#4c78a8", "#bab0ac"
_COLOURS = {"start": "#f58518", "tuned": "#4c78a8"}


def save_plot(result: Result, path: Path) -> None:
    """Save the picture."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    steps = [step for step in result.steps if step["ratio"] is not None]
    height = max(4.0, 1.2 + 0.28 * len(steps))
    figure, (ratios, curve) = plt.subplots(1, 2, figsize=(13, height), layout="constrained")
    _draw_steps(ratios, steps, result.noise)
    if result.final:
        _draw_curves(curve, result)
    else:
        curve.set_axis_off()
    figure.savefig(path, dpi=120)
    plt.close(figure)


_WIDEST = 3.0  # the ratio up to which bars are drawn


def _draw_steps(axes: Any, steps: list[dict[str, Any]], noise: dict[str, Any]) -> None:
    for row, step in enumerate(steps):
        low, high = min(step["ratios"]), max(step["ratios"])
        axes.barh(row, step["ratio"], color=_KEPT if step["decision"] == "kept" else _NOT)
        axes.plot([low, high], [row, row], color="black", linewidth=1.2)
    labels = [f"{one['setting']}: {show(one['from'])} → {show(one['to'])}" for one in steps]
    axes.set_yticks(range(len(steps)), labels, fontsize="small")
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    if noise:
        margin = noise["margin"]
        axes.axvspan(1 - margin, 1 + margin, color="grey", alpha=0.2, label="noise")
        axes.legend(loc="upper right", fontsize="small")
    highest = max([1.0, *(max(step["ratios"]) for step in steps)])
    edge = min(highest, _WIDEST) * 1.1
    axes.set_xlim(0, edge)
    for row, step in enumerate(steps):
        if step["ratio"] > edge:  # the bar goes on
            axes.text(
                edge * 0.98, row, f"{step['ratio']:.1f} →", color="white", ha="right", va="center"
            )
    axes.set(title="Each candidate against what was in place (blue: kept)", xlabel="ratio, range")


def _draw_curves(axes: Any, result: Result) -> None:
    for (name, colour), points in zip(_COLOURS.items(), result.final["curves"], strict=True):
        rates = [point["images_per_s"] for point in points]
        latencies = [point["p99_ms"] for point in points]
        axes.plot(rates, latencies, marker="o", color=colour, label=name)
        for point in points:
            axes.annotate(
                f"{point['concurrency']:g}",
                (point["images_per_s"], point["p99_ms"]),
                textcoords="offset points",
                xytext=(5, -9),
                fontsize="small",
                color=colour,
            )
    limit = result.header["options"]["p99_ms"]
    if limit is not None:
        axes.axhline(limit, color="black", linestyle="--", label=f"p99 {limit:g} ms")
    axes.set(title="At each concurrency", xlabel="images/s", ylabel="p99 ms")
    axes.set_xlim(0, axes.get_xlim()[1] * 1.04)
    axes.set_ylim(0)
    axes.legend(loc="upper left")
