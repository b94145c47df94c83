"""Results for people, as a table, and for programs, as JSON."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detserve.detections import Detections

__all__ = ["ImageReport", "JsonLines", "Output", "TableAtEnd", "render_table"]


@dataclass(frozen=True, slots=True)
class ImageReport:
    """What became of one image.

    Attributes:
        image: Its name, as the user knows it.
        detections: What was found; None where it failed.
        milliseconds: How long the answer took, from the request's start to its end.
        size_wh: Width and height in pixels, EXIF orientation applied, where known.
        error: Why there are no detections.
    """

    image: str
    detections: Detections | None = None
    milliseconds: float | None = None
    size_wh: tuple[int, int] | None = None
    error: Exception | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        if self.error is not None or self.detections is None:
            kind = type(self.error).__name__ if self.error else "Error"
            return {"image": self.image, "error": {"type": kind, "message": str(self.error)}}
        result: dict[str, Any] = {"image": self.image}
        if self.size_wh is not None:
            result["width"], result["height"] = self.size_wh
        if self.milliseconds is not None:
            result["ms"] = round(self.milliseconds, 2)
        result["detections"] = self.detections.to_dicts()
        return result


def render_table(reports: Sequence[ImageReport], *, caption: str | None = None) -> Table:
    """A table for rich to print: photo, label, score, box in pixels, ms; a line per detection.

    Photos go by their file's name where no other has the same.
    """
    names = Counter(Path(report.image).name for report in reports)
    table = Table(caption=caption, caption_justify="left")
    table.add_column("photo", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("box (x1 y1 x2 y2)", justify="right", no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    for report in reports:
        name = Path(report.image).name
        shown = name if names[name] == 1 and report.detections is not None else report.image
        photo = Text(_printable(shown))
        took = "" if report.milliseconds is None else f"{report.milliseconds:.1f}"
        if report.error is not None or report.detections is None:
            table.add_row(photo, Text(_printable(str(report.error)), style="red"), "", "", took)
        elif not report.detections:
            table.add_row(photo, Text("nothing found", style="dim"), "", "", took)
        else:
            for index, found in enumerate(report.detections):
                box = " ".join(f"{value:.0f}".rjust(4) for value in found.box_xyxy)
                first = index == 0
                table.add_row(
                    photo if first else "",
                    Text(found.label),
                    f"{found.score:.2f}",
                    box,
                    took if first else "",
                )
        table.add_section()
    return table


def _printable(text: str) -> str:
    """The text, with the bytes of file names that are no UTF-8 replaced."""
    return os.fsencode(text).decode("utf-8", "replace")


class Output:
    """Takes reports as they come, and counts the failures."""

    def __init__(self) -> None:
        self.failures = 0

    def add(self, report: ImageReport) -> None:
        """Take one report."""
        self.failures += report.error is not None

    def end(self) -> None:
        """Learn that there are no more."""


class JsonLines(Output):
    """Writes each report to standard output at once, as a line of JSON."""

    def add(self, report: ImageReport) -> None:
        """Write one line."""
        super().add(report)
        print(json.dumps(report.to_dict()), flush=True)


class TableAtEnd(Output):
    """Writes one table of all the reports, for a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self._reports: list[ImageReport] = []

    def add(self, report: ImageReport) -> None:
        """Keep one report."""
        super().add(report)
        self._reports.append(report)

    def end(self) -> None:
        """Write the table."""
        if self._reports:
            Console().print(render_table(self._reports))
