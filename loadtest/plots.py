"""The report's plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from loadtest.analysis import Window
from loadtest.records import OK, REFUSED, Row

__all__ = ["save_curve", "save_timeline"]

_QUANTILES = (("p50", "#4c78a8"), ("p95", "#f58518"), ("p99", "#e45756"))
_BUCKETS = 60


def save_curve(windows: Sequence[Window], knee: int | None, unit: str, path: Path) -> None:
    """Plot latency against throughput, a point a step, with the knee marked."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    reached = [window for window in windows if window.figures["answered"]]
    rates = [window.figures["requests_per_s"] for window in reached]
    for name, colour in _QUANTILES:
        values = [window.figures[f"{name}_ms"] for window in reached]
        axes.plot(rates, values, marker="o", color=colour, label=name)
    for window, rate in zip(reached, rates, strict=True):
        axes.annotate(
            str(window.level),
            (rate, window.figures["p99_ms"]),
            textcoords="offset points",
            xytext=(0, 7),
            ha="center",
        )
    if knee is not None:
        axes.axvline(
            windows[knee].figures["requests_per_s"],
            color="black",
            linestyle="--",
            label=f"knee: {windows[knee].name}",
        )
    axes.set(
        title=f"Latency against throughput (at the points: {unit})",
        xlabel="answered requests/s",
        ylabel="latency in ms",
    )
    axes.set_xlim(0, max(rates, default=1.0) * 1.08)
    axes.set_ylim(0, max((window.figures["p99_ms"] for window in reached), default=1.0) * 1.12)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def save_timeline(rows: Sequence[Row], windows: Sequence[Window], path: Path) -> None:
    """Plot answers, refusals, failures and latencies over time."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    ends = np.asarray([row[0] for row in rows])
    begin = float(ends.min())
    width = max(1.0, (float(ends.max()) - begin) / _BUCKETS)
    bucket = ((ends - begin) // width).astype(int)
    latencies = np.asarray([row[1] for row in rows]) * 1e3
    kinds = np.asarray([row[4] if row[4] in (OK, REFUSED) else "failed" for row in rows])
    middles = (np.arange(bucket.max() + 1) + 0.5) * width
    figure, (rate, latency) = plt.subplots(
        2, 1, figsize=(8, 5.5), sharex=True, layout="constrained"
    )
    for kind, name, colour in (
        (OK, "answered", "#54a24b"),
        (REFUSED, "refused", "#f58518"),
        ("failed", "failed", "#e45756"),
    ):
        if kind == OK or (kinds == kind).any():
            counts = np.bincount(bucket[kinds == kind], minlength=len(middles)) / width
            rate.plot(middles, counts, color=colour, label=name)
    answered = [latencies[(bucket == number) & (kinds == OK)] for number in range(len(middles))]
    for name, colour in _QUANTILES:
        values = [np.percentile(a, float(name[1:])) if len(a) else np.nan for a in answered]
        latency.plot(middles, values, color=colour, label=name)
    for axes in (rate, latency):
        for window in windows:
            axes.axvspan(window.begin - begin, window.end - begin, color="#4c78a8", alpha=0.08)
        axes.set_ylim(0)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", ncols=3, fontsize="small")
    rate.set(ylabel="requests/s", title="Over time (shaded: what is counted)")
    latency.set(xlabel="seconds", ylabel="latency in ms")
    figure.savefig(path, dpi=120)
    plt.close(figure)
