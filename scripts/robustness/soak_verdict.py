"""What a soak has shown: which quantities stayed flat, and whether anything failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from robustness.flatness import COUNT, MEMORY, Limits, Verdict, judge, judge_latency
from robustness.intervals import Interval
from robustness.sampling import LOAD, Sample

__all__ = ["SHARED", "Row", "Soak", "judge_soak"]

SHARED = ("/dev/shm", "/tmp", "latency")  # rows that are of no process
WARM_UP_SHARE = 0.1  # of the intervals, whose latency is not judged


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity of one process, judged.

    Attributes:
        process: Whose it is.
        quantity: What it is: rss, uss, threads, files, ...
        unit: "bytes", "ms" or "" for a number.
        verdict: What is said of it.
    """

    process: str
    quantity: str
    unit: str
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"process": self.process, "quantity": self.quantity, "unit": self.unit} | asdict(
            self.verdict
        )


@dataclass(slots=True)
class Soak:
    """A soak, as far as it went.

    Attributes:
        minutes: How long it was to be.
        capacity_per_s: What a closed loop reached before it.
        rate_per_s: What was offered.
        interval_s: Length of an interval.
        samples: Taken at the start of each interval and at the end.
        intervals: What became of the requests.
        interrupted: Whether it was ended before its time.
    """

    minutes: float
    capacity_per_s: float = 0.0
    rate_per_s: float = 0.0
    interval_s: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    intervals: list[Interval] = field(default_factory=list)
    interrupted: bool = False

    @property
    def errors(self) -> Counter[str]:
        """Requests that failed, by protocol and kind."""
        total = Counter[str]()
        for interval in self.intervals:
            total.update(interval.errors)
        return total

    @property
    def seconds(self) -> float:
        """How long load was offered."""
        return sum(interval.seconds for interval in self.intervals)


def judge_soak(soak: Soak) -> tuple[list[Row], list[str]]:
    """Judge a soak.

    Returns:
        Every quantity with its verdict, and what is wrong, in words; empty if nothing is.
    """
    rows = _rows(soak)
    problems = [
        f"{row.process}: {row.quantity} is not flat: {_shown(row.verdict.start, row.unit)} to"
        f" {_shown(row.verdict.end, row.unit)}"
        for row in rows
        if row.verdict.flat is False
    ]
    if soak.errors:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in soak.errors.most_common())
        problems.append(f"requests failed: {kinds}")
    answered = sum(interval.answered for interval in soak.intervals)
    if not answered:
        problems.append("no request was answered")
    if len(soak.samples) > 1:
        problems += _changes(soak.samples, answered)
    if soak.interrupted:
        problems.append("it was ended before its time")
    return rows, problems


def _rows(soak: Soak) -> list[Row]:
    rows = []
    times = [sample.t_s for sample in soak.samples]
    quantities: tuple[tuple[str, str, Limits], ...] = (
        ("rss", "bytes", MEMORY),
        ("uss", "bytes", MEMORY),
        ("threads", "", COUNT),
        ("files", "", COUNT),
    )
    names = soak.samples[0].usage if soak.samples else {}
    for name in names:
        of = [(s.t_s, s.usage[name]) for s in soak.samples if name in s.usage]
        for quantity, unit, limits in quantities:
            values = [float(getattr(used, quantity)) for _, used in of]
            rows.append(Row(name, quantity, unit, judge([t for t, _ in of], values, limits)))
    shared: tuple[tuple[str, str, str, Limits, Callable[[Sample], float]], ...] = (
        ("/dev/shm", "size", "bytes", MEMORY, lambda sample: sample.shm_bytes),
        ("/dev/shm", "segments", "", COUNT, lambda sample: sample.shm_segments),
        ("/tmp", "folders", "", COUNT, lambda sample: sample.folders),
    )
    for process, quantity, unit, limits, value in shared:
        series = [value(sample) for sample in soak.samples]
        rows.append(Row(process, quantity, unit, judge(times, series, limits)))
    kept = soak.intervals[int(np.ceil(WARM_UP_SHARE * len(soak.intervals))) :]
    for quantile in ("p50_ms", "p99_ms"):
        series = [getattr(interval, quantile) for interval in kept]
        rows.append(Row("latency", quantile.removesuffix("_ms"), "ms", judge_latency(series)))
    return rows


def _changes(samples: Sequence[Sample], answered: int) -> list[str]:
    """Which processes have not lived through, and whether Triton counted as the clients did."""
    first, last = samples[0], samples[-1]
    problems = [
        f"{name}, process {pid}, has ended"
        for name, pid in first.pids.items()
        if name != LOAD and pid not in last.pids.values()
    ]
    if failed := last.triton["fail"] - first.triton["fail"]:
        problems.append(f"Triton counts {failed} failed requests")
    if (counted := last.triton["success"] - first.triton["success"]) < answered:
        problems.append(f"Triton counts {counted} answers, and its clients {answered}")
    return problems


def _shown(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 2**20:.1f} MiB"
    return f"{value:.1f} {unit}".rstrip() if unit else f"{value:.0f}"
