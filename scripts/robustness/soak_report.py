"""Tables, files and a plot of a soak."""

from __future__ import annotations

import csv
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from machine import processor_name
from robustness.flatness import MIB
from robustness.sampling import LOAD
from robustness.soak_verdict import SHARED, Row, Soak

__all__ = ["print_soak", "save_soak"]

MARKS = {True: "yes", False: "NO", None: "?"}


def print_soak(soak: Soak, rows: Sequence[Row], problems: Sequence[str], console: Console) -> None:
    """Print the verdicts and what is wrong."""
    console.print(f"{os.cpu_count()} cores of {processor_name()}")
    console.print(_process_table(rows))
    console.print(_shared_table(rows))
    requests = sum(interval.requests for interval in soak.intervals)
    answered = sum(interval.answered for interval in soak.intervals)
    steal = sorted(sample.steal for sample in soak.samples[1:]) or [0.0]
    console.print(
        f"{soak.seconds / 60:.1f} minutes at {soak.rate_per_s:.1f} requests/s (a closed loop"
        f" reached {soak.capacity_per_s:.1f}): {answered} of {requests} answered. CPU taken by"
        f" other machines: median {steal[len(steal) // 2]:.1%}, most {steal[-1]:.1%}."
    )
    if any(row.verdict.flat is None for row in rows):
        console.print("?: the run was too short to tell whether these grow.")
    for problem in problems:
        console.print(f"FAILED: {problem}", style="red", markup=False)
    if not problems:
        console.print("Passed: no error, and nothing that was judged has grown.")


def _process_table(rows: Sequence[Row]) -> Table:
    table = Table(title="Second half of the run: MiB, growth an hour, and numbers")
    table.add_column("process", no_wrap=True)
    for column in ("RSS", "an hour", "USS", "an hour", "threads", "files", "flat"):
        table.add_column(column, justify="right")
    by_process: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        by_process[row.process][row.quantity] = row
    for process, one in by_process.items():
        if "rss" not in one:
            continue
        cells = []
        for name in ("rss", "uss"):
            found = one[name].verdict
            cells.append(_span(found.start / MIB, found.end / MIB, 1))
            cells.append(f"{found.slope_per_hour / MIB:+.1f}")
        for name in ("threads", "files"):
            found = one[name].verdict
            cells.append(_span(found.start, found.end, 0))
        flat = [row.verdict.flat for row in one.values()]
        told = None if None in flat else False not in flat
        table.add_row(process, *cells, MARKS[told])
    return table


def _shared_table(rows: Sequence[Row]) -> Table:
    table = Table(title="What they share, likewise; latency: first to last third")
    for column in ("", "", "start", "end", "an hour", "flat"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        if row.process not in SHARED:
            continue
        found = row.verdict
        slope = "" if row.unit == "ms" else _value(found.slope_per_hour, row.unit, signed=True)
        table.add_row(
            *(row.process, row.quantity),
            *(_value(found.start, row.unit), _value(found.end, row.unit)),
            *(slope, MARKS[found.flat]),
        )
    return table


def save_soak(soak: Soak, rows: Sequence[Row], problems: Sequence[str], folder: Path) -> None:
    """Write soak.json, the samples and intervals as CSV, and the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": {"cores": os.cpu_count(), "processor": processor_name()},
        "minutes": soak.seconds / 60,
        "minutes_wanted": soak.minutes,
        "capacity_per_s": soak.capacity_per_s,
        "rate_per_s": soak.rate_per_s,
        "requests": sum(interval.requests for interval in soak.intervals),
        "answered": sum(interval.answered for interval in soak.intervals),
        "errors": dict(soak.errors),
        "passed": not problems,
        "problems": list(problems),
        "quantities": [row.as_dict() for row in rows],
        "intervals": [interval.as_dict() for interval in soak.intervals],
    }
    (folder / "soak.json").write_text(json.dumps(document, indent=2) + "\n")
    _write_csv(folder / "processes.csv", [row for one in soak.samples for row in one.rows()])
    system = [
        {
            "t_s": round(sample.t_s, 1),
            "shm_bytes": sample.shm_bytes,
            "shm_segments": sample.shm_segments,
            "folders": sample.folders,
            "busy": round(sample.busy, 4),
            "steal": round(sample.steal, 4),
            **{f"triton_{name}": count for name, count in sample.triton.items()},
        }
        for sample in soak.samples
    ]
    _write_csv(folder / "system.csv", system)
    intervals = [
        {
            name: sum(value.values()) if name == "errors" else value
            for name, value in interval.as_dict().items()
            if name != "protocols"
        }
        for interval in soak.intervals
    ]
    _write_csv(folder / "intervals.csv", intervals)
    if soak.intervals:
        plot_soak(soak, folder / "soak.png")


def plot_soak(soak: Soak, file: Path) -> None:
    """Draw memory by process, latency, throughput and /dev/shm over time."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 7.5), sharex=True, layout="constrained")
    memory, latency, rate, shared = axes.flat
    series: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for sample in soak.samples:
        for name, used in sample.usage.items():
            series[name][0].append(sample.t_s / 60)
            series[name][1].append(used.rss / MIB)
    for name, (minutes, values) in series.items():
        style = ":" if name == LOAD else "-"
        memory.plot(minutes, values, style, label=name, linewidth=1.3)
    highest = max(max(values) for _, values in series.values())
    memory.set(title="Memory by process (RSS)", ylabel="MiB", ylim=(0, 1.45 * highest))
    memory.legend(fontsize=7, ncols=4, loc="upper center")
    times = [interval.t_s / 60 for interval in soak.intervals]
    latency.plot(times, [one.p99_ms for one in soak.intervals], label="p99", linewidth=1.3)
    latency.plot(times, [one.p50_ms for one in soak.intervals], label="p50", linewidth=1.3)
    latency.set(title="Latency", ylabel="ms", ylim=(0, None))
    latency.legend(fontsize=8)
    offered = [one.requests / one.seconds for one in soak.intervals]
    answered = [one.answered / one.seconds for one in soak.intervals]
    rate.plot(times, offered, label="offered", linewidth=1.3)
    rate.plot(times, answered, "--", label="answered well", linewidth=1.3)
    rate.set(title="Throughput", ylabel="requests/s", xlabel="minutes", ylim=(0, None))
    stolen = rate.twinx()
    sampled = [sample.t_s / 60 for sample in soak.samples[1:]]
    stolen.plot(sampled, [100 * one.steal for one in soak.samples[1:]], "C3:", linewidth=1)
    stolen.set(ylabel="% of CPU taken by other machines (dotted)", ylim=(0, 100))
    rate.legend(fontsize=8, loc="lower left")
    moments = [sample.t_s / 60 for sample in soak.samples]
    shared.plot(moments, [sample.shm_bytes / MIB for sample in soak.samples], linewidth=1.3)
    shared.set(title="Shared memory (/dev/shm)", ylabel="MiB", xlabel="minutes", ylim=(0, None))
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _write_csv(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def _span(start: float, end: float, digits: int) -> str:
    first, last = f"{start:.{digits}f}", f"{end:.{digits}f}"
    return last if first == last else f"{first} to {last}"


def _value(value: float, unit: str, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    if unit == "bytes":
        return f"{value / MIB:{sign}.2f} MiB"
    return f"{value:{sign}.1f} {unit}".rstrip()
