"""Tables and files of what faults under load have cost."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from machine import processor_name
from robustness.trial import Result

__all__ = ["print_chaos", "save_chaos"]


def print_chaos(results: Sequence[Result], skipped: Mapping[str, str], console: Console) -> None:
    """Print a row for each case, then what is wrong."""
    console.print(f"{os.cpu_count()} cores of {processor_name()}")
    table = Table(title="Requests that failed under each fault")
    table.add_column("what is hit")
    for column in (
        "requests",
        "in flight",
        "handed over",
        "refused",
        "other",
        "with retries",
        "healthy after",
        "last failed after",
        "left",
        "passed",
    ):
        table.add_column(column, justify="right")
    for one in results:
        counts = (one.requests, one.in_flight, one.handed, one.refused, one.other, one.retrying)
        table.add_row(
            *(one.what, *map(str, counts)),
            *(_seconds(one.healthy_s), _seconds(one.last_failed_s), str(len(one.left))),
            "NO" if one.failures else "yes",
        )
    console.print(table)
    console.print(
        "in flight: on a process when it died. handed over: given by Triton to a dead process"
        " that was not replaced yet. refused: told at once that they were not begun. other: none"
        " of these. with retries: of all lost, those of clients that repeat requests within 30 s."
    )
    for name, why in skipped.items():
        console.print(f"Skipped {name}: {why}", markup=False)
    for one in results:
        for failure in one.failures:
            console.print(f"FAILED: {one.case}: {failure}", style="red", markup=False)


def save_chaos(
    results: Sequence[Result],
    skipped: Mapping[str, str],
    rates: Mapping[str, float],
    folder: Path,
) -> None:
    """Write chaos.json."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": {"cores": os.cpu_count(), "processor": processor_name()},
        **rates,
        "passed": not any(one.failures for one in results),
        "skipped": dict(skipped),
        "cases": [one.as_dict() for one in results],
    }
    (folder / "chaos.json").write_text(json.dumps(document, indent=2) + "\n")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"
