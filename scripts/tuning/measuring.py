"""Loads, what came of them, and who measures: the search knows no more of a server than this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tuning.journal import Journal
from tuning.settings import Plan

__all__ = ["Bench", "Load", "LoggedBench", "Measurement", "TrialError"]


class TrialError(RuntimeError):
    """A plan cannot be measured: it does not load, or answers otherwise."""


@dataclass(frozen=True, order=True)
class Load:
    """What a server is put under.

    Attributes:
        kind: "closed": so many requests under way at any time; "open": so many a second at random
            moments, whatever the answers.
        value: How many.
    """

    kind: Literal["closed", "open"]
    value: float


@dataclass(frozen=True)
class Measurement:
    """What came of a load.

    Attributes:
        images_per_s: Answered well by its end.
        p50_ms: Median latency of those.
        p99_ms: The quantile 0.99 of their latencies.
        failed: Requests that failed.
        goodput_per_s: Answered well and within the limit of the SLO; 0 without one.
        details: What else is logged.
    """

    images_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int = 0
    goodput_per_s: float = 0.0
    details: dict[str, Any] | None = None


class Bench(Protocol):
    """Measures plans."""

    def measure(self, plan: Plan, copy: int, load: Load, seconds: float) -> Measurement:
        """Put a server of a plan under a load.

        Args:
            plan: What it is set to.
            copy: Tells two servers of one plan apart.
            load: The load.
            seconds: How long.

        Raises:
            TrialError: It cannot be measured.
        """

    def fresh(self) -> None:
        """End all servers: the next measurement starts new ones."""

    def clock(self) -> float:
        """Now, in seconds."""


class LoggedBench:
    """Measures with another bench, and logs; what the log has is not measured again.

    Attributes:
        spent_s: What all of it took, also of what comes from the log.
    """

    def __init__(
        self,
        bench: Bench,
        journal: Journal,
        measured: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Measure with a bench, log to a journal, and call `measured` with what each took."""
        self._bench = bench
        self._journal = journal
        self._measured_in = measured
        self.spent_s = 0.0

    def measure(
        self, purpose: str, plan: Plan, copy: int, load: Load, seconds: float
    ) -> Measurement:
        """Measure, or take it from the log.

        Args:
            purpose: What for.
            plan: As of `Bench.measure`, like all that follow.
            copy: Tells two servers of one plan apart.
            load: The load.
            seconds: How long.

        Raises:
            TrialError: It cannot be measured.
        """
        key = {
            "purpose": purpose, "plan": plan, "copy": copy, "load": [load.kind, load.value],
            "seconds": seconds,
        }  # fmt: skip
        value = self._journal.record(
            "measure", key, lambda: self._measured(plan, copy, load, seconds)
        )
        took = float(value.pop("took_s"))
        self.spent_s += took
        self._measured_in(took)
        if "error" in value:
            raise TrialError(value["error"])
        return Measurement(**value)

    def note(self, kind: str, value: dict[str, Any]) -> None:
        """Log a decision."""
        self._journal.record(kind, {}, lambda: value)

    def fresh(self) -> None:
        """End all servers: the next measurement starts new ones."""
        self._bench.fresh()

    def _measured(self, plan: Plan, copy: int, load: Load, seconds: float) -> dict[str, Any]:
        start = self._bench.clock()
        try:
            found = vars(self._bench.measure(plan, copy, load, seconds))
        except TrialError as error:
            found = {"error": str(error)}
        return {**found, "took_s": self._bench.clock() - start}
