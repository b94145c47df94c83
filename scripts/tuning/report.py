"""The report of a tuning: Markdown, JSON, a plot, and tables in a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tuning.plot import save_plot
from tuning.result import Result
from tuning.settings import show

__all__ = ["print_report", "write_report"]

Columns = tuple[str, ...]

_WIDTH = 120  # of tables in a file
_NOISY = 0.1  # a margin that hides most of what settings give
_BUSY = 0.1  # of the cores, used by others
_STEPS: Columns = ("setting", "from", "to", "ratio", "range", "rounds", "at load", "decision")
_CURVE: Columns = (
    "concurrency",
    "start images/s",
    "p50 ms",
    "p99 ms",
    "tuned images/s",
    "p50 ms",
    "p99 ms",
)


def write_report(result: Result, folder: Path) -> tuple[Path, Path, Path]:
    """Write Markdown, JSON and the plot; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown, data, plot = (folder / f"report.{suffix}" for suffix in ("md", "json", "png"))
    data.write_text(json.dumps(result.as_json(), indent=2) + "\n", encoding="utf-8")
    save_plot(result, plot)
    markdown.write_text(_markdown(result), encoding="utf-8")
    return markdown, data, plot


def print_report(result: Result) -> None:
    """Print the report to the terminal."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    console.print(f"\n{_about(result)}", highlight=False)
    tables: list[tuple[str, Columns, list[list[str]]]] = [
        ("What each step gave", _STEPS, _step_rows(result))
    ]
    if result.final:
        tables.append(("The end against the start", _CURVE, _curve_rows(result)))
    for title, columns, rows in tables:
        table = Table(title=title)
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(_verdict(result), highlight=False)


def _about(result: Result) -> str:
    header = result.header
    limit = header["options"]["p99_ms"]
    goal = "greatest throughput" + (f" with p99 <= {limit:g} ms" if limit is not None else "")
    text = (
        f"{header['cores']} cores of {header['processor']}; {header['backend']} on the"
        f" {header['kind'].upper()}; {header['photos']} photos. Asked for: {goal}."
        f" {result.measurements} measurements of {header['options']['seconds']:g} s and the starts"
        f" of servers took {result.spent_s / 60:.1f} minutes; other processes used"
        f" {result.cores_used_by_others:.2f} cores meanwhile."
    )
    if result.cores_used_by_others > _BUSY * header["cores"]:
        text += (
            " That is much: what takes a greater share from them, as more threads do, looks faster"
            " than it is. Repeat it on a quiet machine."
        )
    if result.noise:
        ratios = result.noise["ratios"]
        text += (
            f" The start against itself gave {min(ratios):.3f} to {max(ratios):.3f}: to be kept, a"
            f" candidate had to be better by {result.noise['margin']:.1%}."
        )
        if result.noise["margin"] > _NOISY:
            text += " More --rounds or longer --seconds show smaller gains."
    return text


def _verdict(result: Result) -> str:
    final = result.final
    if not final:
        return "The run has not come to its end: the same command goes on with it."
    limit = result.header["options"]["p99_ms"]
    if not result.keeps_slo:
        return f"No load was found at which the tuned ensemble keeps p99 <= {limit:g} ms."
    low, high = min(final["ratios"]), max(final["ratios"])
    measure = "throughput" if None not in final["loads"] else "shortness of p99 at the lowest load"
    text = (
        f"Tuned against the start: {final['ratio']:.2f} times the {measure}, {low:.2f} to"
        f" {high:.2f} over {len(final['ratios'])} rounds."
    )
    untried = ""
    if final["untried"]:
        untried = f" The budget ended before these were tried: {', '.join(final['untried'])}."
    if not result.changes:
        return f"Nothing better than the start was found. {text} That is the noise.{untried}"
    changes = ", ".join(
        f"{name} {show(old)} -> {show(new)}" for name, (old, new) in result.changes.items()
    )
    return f"{text} Changed: {changes}.{untried}"


def _step_rows(result: Result) -> list[list[str]]:
    rows = []
    for step in result.steps:
        known = step["ratio"] is not None
        span = f"{min(step['ratios']):.3f} to {max(step['ratios']):.3f}" if known else ""
        rows.append([
            step["setting"], show(step["from"]), show(step["to"]),
            f"{step['ratio']:.3f}" if known else "", span, str(step["rounds"]), _at(step),
            step["decision"] if known else f"{step['decision']}: {step['reason']}",
        ])  # fmt: skip
    return rows


def _at(step: dict[str, Any]) -> str:
    """The loads of the two that were compared."""
    if step["ratio"] is None:
        return ""
    if step["by"] == "open":
        return "twice what is reached"
    return " / ".join("none" if load is None else f"{load:g}" for load in step["loads"])


def _curve_rows(result: Result) -> list[list[str]]:
    start, tuned = result.final["curves"]
    return [
        [f"{one['concurrency']:g}", *_speeds(one), *_speeds(other)]
        for one, other in zip(start, tuned, strict=True)
    ]


def _speeds(row: dict[str, float]) -> Iterable[str]:
    return (f"{row[name]:.1f}" for name in ("images_per_s", "p50_ms", "p99_ms"))


def _markdown(result: Result) -> str:
    lines = [
        "# Tuning", "", _about(result), "", f"**{_verdict(result)}**", "",
        "## What each step gave", "",
        "The ratio is the candidate's to what was in place, the median over rounds in which both"
        " were measured by turns: of the throughput at the best load within the limits (of"
        " queues, of what is answered within the limit at twice what is reached). 'At load' is the"
        " concurrency of the two.",
        "", *_table(_STEPS, _step_rows(result)), "",
    ]  # fmt: skip
    if result.final:
        lines += [
            "## The end against the start", "",
            f"Medians over {len(result.final['ratios'])} rounds.", "",
            *_table(_CURVE, _curve_rows(result)), "",
        ]  # fmt: skip
    lines += ["![What each step gave; throughput and latency](report.png)", ""]
    if result.diff:
        lines += ["## The configurations", "", "```diff", result.diff.rstrip("\n"), "```", ""]
    return "\n".join(lines)


def _table(columns: Columns, rows: list[list[str]]) -> list[str]:
    if not rows:
        return ["None."]
    return [
        f"| {' | '.join(columns)} |",
        f"|---|{'--:|' * (len(columns) - 1)}",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows),
    ]
