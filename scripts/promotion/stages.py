"""Telling what a promotion does: a line a stage while it runs, and everything as JSON."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Stage", "Stages"]


@dataclass
class Stage:
    """One step of a promotion.

    Attributes:
        name: What it is.
        seconds: How long it took.
        passed: Whether it came to its end.
        lines: What there is to say of it.
        values: The same for programs.
    """

    name: str
    seconds: float = 0.0
    passed: bool = False
    lines: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def say(self, line: str, **values: object) -> None:
        """Say something of it, and note it for programs."""
        self.lines.append(line)
        self.values |= values


class Stages:
    """The steps of a promotion, in the order they were taken.

    Attributes:
        done: Those that have ended, well or not.
    """

    def __init__(self) -> None:
        self.done: list[Stage] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a step, and show what it said when it ends."""
        stage = Stage(name)
        began = time.monotonic()
        try:
            yield stage
            stage.passed = True
        finally:
            stage.seconds = time.monotonic() - began
            self.done.append(stage)
            mark = "ok" if stage.passed else "FAILED"
            first, *rest = stage.lines or [""]
            print(f"{name:<22} {stage.seconds:6.1f} s  {mark:<6} {first}".rstrip(), file=sys.stderr)
            for line in rest:
                print(f"{'':<40}{line}", file=sys.stderr)

    def to_list(self) -> list[dict[str, Any]]:
        """All of them, for JSON."""
        return [
            {
                "stage": stage.name,
                "seconds": round(stage.seconds, 3),
                "passed": stage.passed,
                **stage.values,
            }
            for stage in self.done
        ]
