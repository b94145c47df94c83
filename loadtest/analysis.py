"""Figures out of records: windows, the knee, the SLO, and agreement with Triton's statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loadtest.options import LoadOptions
from loadtest.records import OK, REFUSED, Recorder, Row
from loadtest.triton_statistics import Counters

__all__ = [
    "MIN_EMPTY_CALLS",
    "Check",
    "Window",
    "agreement",
    "cpu_share",
    "failures",
    "knee_of",
    "missed_slo",
    "summary",
]


MIN_EMPTY_CALLS = 30  # fewer tell too little about their mean


@dataclass
class Window:
    """A counted stretch of the run.

    Attributes:
        name: The phase.
        level: Its load.
        begin: Its first moment, seconds since the epoch.
        end: Its last moment.
        figures: What the load generator measured of the requests that ended within it.
        triton: What Triton counted meanwhile, a model each.
        generator_cpu: Cores that the busiest process of the load generator used.
    """

    name: str
    level: int
    begin: float
    end: float
    figures: dict[str, float] = field(default_factory=dict)
    triton: dict[str, Counters] = field(default_factory=dict)
    generator_cpu: float = 0.0


@dataclass(frozen=True)
class Check:
    """A figure of the load generator beside the one that Triton's statistics give."""

    name: str
    ours: float
    tritons: float
    note: str = ""
    uncertainty: float = 0.0  # of the difference: two standard errors, relative

    @property
    def difference(self) -> float:
        """Relative to Triton's."""
        return abs(self.ours - self.tritons) / self.tritons if self.tritons else float("inf")


def summary(rows: Sequence[Row], seconds: float) -> dict[str, float]:
    """Throughput and latency of answered requests, and what became of the others."""
    latencies_ms = np.asarray([row[1] for row in rows if row[4] == OK]) * 1e3
    outcomes = Counter(row[4] for row in rows)
    quantiles = np.percentile(latencies_ms, (50, 95, 99)) if len(latencies_ms) else np.zeros(3)
    failed = len(rows) - outcomes[OK]
    return {
        "requests": len(rows),
        "answered": outcomes[OK],
        "refused": outcomes[REFUSED],
        "failed": failed - outcomes[REFUSED],
        "fail_share": failed / len(rows) if rows else 0.0,
        "requests_per_s": outcomes[OK] / seconds,
        "images_per_s": sum(row[5] for row in rows) / seconds,
        "mean_ms": float(latencies_ms.mean()) if len(latencies_ms) else 0.0,
        "p50_ms": float(quantiles[0]),
        "p95_ms": float(quantiles[1]),
        "p99_ms": float(quantiles[2]),
        "max_ms": float(latencies_ms.max()) if len(latencies_ms) else 0.0,
        "late_ms": float(np.mean([row[6] for row in rows])) * 1e3 if rows else 0.0,
    }


def cpu_share(recorder: Recorder, begin: float, end: float) -> float:
    """Cores that the busiest process used between two moments."""
    busiest = 0.0
    for process in {name for _, name, _ in recorder.cpu}:
        samples = [(t, used) for t, name, used in recorder.cpu if name == process]
        inside = [(t, used) for t, used in samples if begin - 1 <= t <= end + 1]
        if len(inside) > 1 and inside[-1][0] > inside[0][0]:
            used = (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])
            busiest = max(busiest, used)
    return busiest


def knee_of(windows: Sequence[Window]) -> int | None:
    """The index of the step at the knee: where throughput over mean latency is highest.

    That quotient is Kleinrock's power ("Power and deterministic rules of thumb for probabilistic
    problems in computer communications", 1979). Below its maximum more load brings mostly
    throughput, above it mostly waiting.

    Returns:
        None where no step has an answer.
    """
    powers = [
        window.figures["requests_per_s"] / window.figures["mean_ms"]
        if window.figures["mean_ms"]
        else 0.0
        for window in windows
    ]
    return powers.index(max(powers)) if any(powers) else None


def missed_slo(options: LoadOptions, windows: Sequence[Window]) -> list[str]:
    """Which SLO was missed, and by how much; of a ramp only if no step kept it."""
    missed = [_missed_by(options, window) for window in windows]
    if options.scenario == "ramp":
        return missed[0] if missed and all(missed) else []
    return [line for lines in missed for line in lines]


def _missed_by(options: LoadOptions, window: Window) -> list[str]:
    lines = []
    p99, share = window.figures["p99_ms"], window.figures["fail_share"]
    if options.p99_ms and p99 > options.p99_ms:
        by = p99 - options.p99_ms
        lines.append(
            f"{window.name}: p99 {p99:.1f} ms, allowed {options.p99_ms:g}: {by:.1f} ms over"
        )
    if share > options.max_fail:
        refused, failed = window.figures["refused"], window.figures["failed"]
        lines.append(
            f"{window.name}: {share:.2%} without detections, allowed {options.max_fail:.2%}:"
            f" {refused:.0f} refused and {failed:.0f} failed of {window.figures['requests']:.0f}"
        )
    if not window.figures["answered"]:
        lines.append(f"{window.name}: no request was answered")
    return lines


def agreement(
    recorder: Recorder, counted: Counters, outside_s: Sequence[float], *, through_gateway: bool
) -> list[Check]:
    """Hold the whole run against what Triton counted from before it until after it.

    Args:
        recorder: Every request of the run.
        counted: What Triton counted of the ensemble.
        outside_s: Latencies of empty calls: as large as a request, but for no model, so Triton
            counts none of it.
        through_gateway: Whether REST users took part: no empty call goes through the gateway.
    """
    answered = [row for row in recorder.rows if row[4] == OK]
    images = sum(row[5] for row in answered)
    checks = [Check("images with detections", images, counted.images)]
    if not answered or through_gateway:
        return checks
    # From the moment of sending: what an open load was late with is the load generator's alone.
    mean_ms = float(np.mean([row[1] - row[6] for row in answered])) * 1e3
    checks.append(Check("answered requests", len(answered), counted.counts["success"]))
    if len(outside_s) >= MIN_EMPTY_CALLS:
        outside_ms = float(np.mean(outside_s)) * 1e3
        inside_ms = counted.mean_ms("success")
        note = f"{inside_ms:.2f} in Triton's models + {outside_ms:.2f} outside, by empty calls"
        error_ms = float(np.std(outside_s, ddof=1)) * 1e3 / len(outside_s) ** 0.5
        theirs_ms = inside_ms + outside_ms
        checks.append(
            Check("mean latency in ms", mean_ms, theirs_ms, note, 2 * error_ms / theirs_ms)
        )
    return checks


def failures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """How often each kind of failure came, by protocol."""
    counts = Counter((row[2], row[4]) for row in rows if row[4] != OK)
    return [
        {"protocol": protocol, "kind": kind, "count": count}
        for (protocol, kind), count in counts.most_common()
    ]
