"""The report: HTML with the plots inside, CSV, JSON, PNG."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.analysis import MIN_EMPTY_CALLS, Check, Window, failures, summary
from loadtest.options import LoadOptions
from loadtest.page import render
from loadtest.plots import save_curve, save_timeline
from loadtest.records import Row
from loadtest.triton_statistics import Counters
from machine import processor_name

__all__ = ["BUSY_CORES", "Report", "write_report"]

BUSY_CORES = 0.8  # of a core: above it the load generator's figures are about itself


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was found out in a run; the members are described in docs/loadtest.md."""

    options: LoadOptions
    protocols: list[str]
    begin: float
    windows: list[Window]
    rows: list[Row]
    total: dict[str, Counters]
    outside_s: list[float]
    checks: list[Check]
    missed: list[str]
    knee: int | None

    def disagrees(self) -> bool:
        """Whether a figure is further from Triton's than it may be, or none could be compared."""
        tolerance = self.options.tolerance
        if tolerance and not self.checks:
            return True
        return bool(tolerance) and any(
            check.difference - check.uncertainty > tolerance for check in self.checks
        )

    def busiest(self) -> float:
        """Cores that the busiest process of the load generator used in any window."""
        return max((window.generator_cpu for window in self.windows), default=0.0)

    def verdict(self) -> list[str]:
        """What a reader has to know first, a sentence each."""
        lines = [f"SLO missed: {line}" for line in self.missed] or ["The SLO was kept."]
        tolerance = self.options.tolerance
        for check in self.checks:
            if check.difference <= (tolerance or 0.02):
                word = "agrees with"
            elif check.difference - check.uncertainty <= (tolerance or 0.02):
                word = f"may agree (the run is too short to tell, ±{check.uncertainty:.1%}) with"
            else:
                word = "DIFFERS from"
            note = f" ({check.note})" if check.note else ""
            lines.append(
                f"{check.name}: {check.ours:.6g} {word} Triton's {check.tritons:.6g}{note}:"
                f" {check.difference:.2%}"
            )
        if "rest" not in self.protocols and len(self.outside_s) < MIN_EMPTY_CALLS:
            lines.append(
                f"The mean latency was not compared: {len(self.outside_s)} empty calls are too few"
                f" ({MIN_EMPTY_CALLS})."
            )
        if not self.checks:
            lines.append("Triton's statistics could not be read: nothing was compared.")
        if self.knee is not None:
            window = self.windows[self.knee]
            line = (
                f"Knee at {window.name}: {window.figures['requests_per_s']:.1f} requests/s,"
                f" mean {window.figures['mean_ms']:.1f} ms"
            )
            last = self.knee == len(self.windows) - 1
            lines.append(line + (": the last step, so it may lie higher" if last else ""))
        if self.busiest() > BUSY_CORES:
            lines.append(
                f"The load generator used {self.busiest():.2f} of a core: its own limit may be"
                " what was measured. Use --processes."
            )
        return lines

    def by_request(self) -> list[dict[str, Any]]:
        """The whole run by protocol and request."""
        seconds = max((row[0] for row in self.rows), default=self.begin) - self.begin
        kinds = sorted({(row[2], row[3]) for row in self.rows})
        return [
            {
                "protocol": protocol,
                "request": name,
                **summary([r for r in self.rows if r[2:4] == (protocol, name)], seconds or 1.0),
            }
            for protocol, name in kinds
        ]

    def steps(self) -> list[dict[str, Any]]:
        """A row a window."""
        return [
            {
                "phase": window.name,
                "level": window.level,
                "seconds": window.end - window.begin,
                **window.figures,
                **_outside(window, self.options.model),
                "generator_cores": window.generator_cpu,
            }
            for window in self.windows
        ]

    def stages(self) -> list[dict[str, Any]]:
        """A row a window and model, then the whole run."""
        parts = [(window.name, window.triton) for window in self.windows]
        return [
            {"phase": name, "model": model, **counters.as_row()}
            for name, models in [*parts, ("whole run", self.total)]
            for model, counters in models.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """Everything but the single requests."""
        options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self.options).items()}
        options.pop("api_key")
        return {
            "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.begin)),
            "machine": {"cores": os.cpu_count(), "processor": processor_name()},
            "options": options,
            "protocols": self.protocols,
            "verdict": self.verdict(),
            "agreement": [{**vars(check), "difference": check.difference} for check in self.checks],
            "missed_slo": self.missed,
            "knee": None if self.knee is None else self.windows[self.knee].name,
            "steps": self.steps(),
            "requests": self.by_request(),
            "failures": failures(self.rows),
            "triton": self.stages(),
            "outside_ms": [round(took * 1e3, 3) for took in self.outside_s],
        }


def write_report(report: Report, folder: Path) -> Path:
    """Write every file; return the path of the HTML."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = []
    if report.options.scenario == "ramp":
        plots.append(folder / "latency_throughput.png")
        save_curve(report.windows, report.knee, report.options.unit, plots[-1])
    if report.rows:
        plots.append(folder / "timeline.png")
        save_timeline(report.rows, report.windows, plots[-1])
    data = report.as_json()
    (folder / "report.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    for name in ("steps", "requests", "failures", "triton"):
        _write_csv(data[name], folder / f"{name}.csv")
    html = folder / "report.html"
    html.write_text(render(data, plots, disagrees=report.disagrees()), encoding="utf-8")
    return html


def _outside(window: Window, model: str) -> dict[str, float]:
    """What of the mean latency Triton counts, and the rest: client, network, gateway."""
    inside = window.triton[model].mean_ms("success") if model in window.triton else 0.0
    mean = window.figures["mean_ms"]
    return {"in_triton_ms": inside, "outside_ms": mean - inside if inside else 0.0}


def _write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        if rows:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
