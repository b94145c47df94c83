"""The load test's report: when it fails a run, and its files."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import pytest

from loadtest.analysis import Check, Window, summary
from loadtest.options import LoadOptions
from loadtest.records import Row
from loadtest.report import Report, write_report


def report(*checks: Check, knee: int | None = None, **options: Any) -> Report:
    rows: list[Row] = [(100.0 + n, 0.1, "grpc", "detect", "ok", 1, 0.0) for n in range(20)]
    rows.append((110.0, 0.1, "grpc", "<b>", "refused", 0, 0.0))
    windows = [
        Window("1 user", 1, 100.0, 110.0, summary(rows[:10], 10.0), generator_cpu=0.9),
        Window("2 users", 2, 110.0, 120.0, summary(rows[10:], 10.0)),
    ]
    return Report(
        options=LoadOptions.from_namespace(argparse.Namespace(**options)),
        protocols=["grpc"],
        begin=100.0,
        windows=windows,
        rows=rows,
        total={},
        outside_s=[],
        checks=list(checks),
        missed=[],
        knee=knee,
    )


@pytest.mark.parametrize(
    ("checks", "tolerance", "disagrees"),
    [
        ([Check("n", 100, 101)], 0.02, False),
        ([Check("n", 100, 103)], 0.02, True),
        ([Check("n", 100, 103, uncertainty=0.02)], 0.02, False),
        ([Check("n", 100, 100), Check("m", 1, 0)], 0.02, True),
        ([], 0.02, True),
        ([Check("n", 1, 9)], 0.0, False),
    ],
)
def test_a_run_fails_where_figures_differ_or_none_was_compared(
    checks: list[Check], tolerance: float, disagrees: bool
) -> None:
    assert report(*checks, tolerance=tolerance).disagrees() is disagrees


def test_the_verdict_says_what_a_reader_has_to_know() -> None:
    lines = report(Check("requests", 100, 103, uncertainty=0.02), knee=1).verdict()
    assert lines[0] == "The SLO was kept."
    assert (
        "requests: 100 may agree (the run is too short to tell, ±2.0%) with Triton's 103"
        in lines[1]
    )
    assert any(line.startswith("Knee at 2 users") and "last step" in line for line in lines)
    assert any("used 0.90 of a core" in line for line in lines)


def test_the_files_have_the_same_figures(tmp_path: Path) -> None:
    page = write_report(report(Check("requests", 1, 1), knee=0, api_key="secret"), tmp_path)
    text = page.read_text()
    assert text.count('src="data:image/png;base64,') == 2
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    data = json.loads((tmp_path / "report.json").read_text())
    with (tmp_path / "steps.csv").open() as file:
        steps = list(csv.DictReader(file))
    assert [float(step["p99_ms"]) for step in steps] == [step["p99_ms"] for step in data["steps"]]
    assert data["failures"] == [{"protocol": "grpc", "kind": "refused", "count": 1}]
    assert all("secret" not in path.read_text(errors="replace") for path in tmp_path.iterdir())
