"""Coordinate descent: one setting after another, each candidate against what is in place."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tuning.candidates import Machine, candidates, queue_candidates
from tuning.compare import Comparison, Options, best_load, better, compare, noise_of
from tuning.measuring import Load, LoggedBench, Measurement, TrialError
from tuning.settings import Plan, show

__all__ = ["LEVELS", "Limits", "Search"]

LEVELS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_OVERLOAD = 2.0  # times what is reached: what limits of queues are judged under
_MORE = 1.02  # times the greatest throughput so far: less is no gain of a higher load

Decision = Literal["kept", "not kept", "not confirmed", "failed"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where the search ends.

    Attributes:
        budget_s: What measuring may take, in seconds, the head-to-head at the end included.
        max_concurrency: The greatest load in the closed loop.
        only: Beginnings of the names of the settings to try; all if empty.
        final_rounds: Of the head-to-head.
    """

    budget_s: float = 600.0
    max_concurrency: int = 16
    only: tuple[str, ...] = ()
    final_rounds: int = 5

    def takes(self, name: str) -> bool:
        """Whether a setting is to be tried."""
        return not self.only or name.startswith(self.only)


class Search:
    """Finds a better plan.

    Args:
        bench: Measures.
        machine: What the candidates depend on.
        start: The plan to begin with.
        options: How plans are compared.
        limits: Where to end.
        tell: Called with what is being done.
        report: Called with what came of each candidate.

    Attributes:
        plan: The best plan so far.
        steps: What came of each candidate.
    """

    def __init__(
        self,
        bench: LoggedBench,
        machine: Machine,
        start: Plan,
        options: Options,
        limits: Limits,
        tell: Callable[[str], None] = lambda _: None,
        report: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        self._bench = bench
        self._machine = machine
        self._start = start
        self._options = options
        self._limits = limits
        self._tell = tell
        self._report = report
        self._margin = options.margin
        self._best: Load | None = None  # of the plan in place
        self._reached = 0.0  # its throughput there
        self._tried: set[str] = set()
        self._untried: list[str] = []  # the budget was spent
        self.plan = dict(start)
        self.steps: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """Search until nothing is better or the budget is spent; hold the end against the start.

        Returns:
            The head-to-head's result, as it is logged.

        Raises:
            TrialError: The plan to begin with cannot be measured.
        """
        self._sweep()
        self._measure_noise()
        again = self._pass()
        for name in self._start:  # before the budget goes into a second pass
            self._try_queue(name)
        while again:
            again = self._pass()
        return self._head_to_head()

    def _sweep(self) -> None:
        """Find the load at which the plan to begin with does its best."""
        self._tell("the start at rising load")
        found: dict[Load, Measurement] = {}
        greatest, flat = 0.0, 0
        for load in self._levels():
            found[load] = now = self._bench.measure(
                "sweep", self.plan, 0, load, self._options.seconds
            )
            limit = self._options.p99_ms
            if limit is not None and now.p99_ms > 1.25 * limit:
                break  # well over it: not by noise
            flat = 0 if now.images_per_s > _MORE * greatest else flat + 1
            if flat == 2 or now.failed:
                break
            greatest = max(greatest, now.images_per_s)
        self._settle([found])
        self._bench.note(
            "sweep", {"best": self._best.value if self._best else None, "reached": self._reached}
        )

    def _measure_noise(self) -> None:
        """Compare the plan with itself: what differs then is noise."""
        self._tell("the start against itself: the noise")
        plans = (self.plan, self.plan)
        itself = compare(self._bench, "noise", plans, self._loads(), self._options)
        noise = noise_of(itself.ratios())
        self._margin = max(self._options.margin, noise)
        self._bench.note("noise", {**itself.summary(), "noise": noise, "margin": self._margin})

    def _pass(self) -> bool:
        """Try every candidate that was not tried beside the plan in place; whether one was kept."""
        kept = False
        for name in self._start:
            if not self._limits.takes(name):
                continue
            for value in candidates(name, self._machine, self.plan):
                kept = self._try(name, value, self._loads()) or kept
        return kept

    def _try_queue(self, name: str) -> None:
        """Try limits of a queue at more requests than are served."""
        limit = self._options.p99_ms
        if limit is None or not self._limits.takes(name) or self._reached <= 0:
            return
        for value in queue_candidates(name, self.plan, self._reached, limit):
            self._try(name, value, [Load("open", round(_OVERLOAD * self._reached, 1))])

    def _try(self, name: str, value: int | str, loads: list[Load]) -> bool:
        other = {**self.plan, name: value}
        # What the others were at the time is part of it: beside other values it may do better.
        key = repr(sorted(other.items()))
        if key in self._tried:
            return False
        if self._left() < self._cost(len(loads)):
            self._untried.append(f"{name} {show(value)}")
            return False
        self._tried.add(key)
        before = self.plan[name]
        self._tell(f"{name}: {show(before)} -> {show(value)}")
        decision, comparison, reason = self._decide(f"{name}={value}", other, loads)
        step = {
            "setting": name, "from": before, "to": value, "decision": decision, "reason": reason,
            "by": loads[0].kind, "rounds": len(comparison.second) if comparison else 0,
            **(comparison.summary() if comparison and comparison.second else {"ratio": None}),
        }  # fmt: skip
        self._bench.note("step", step)
        self.steps.append(step)
        self._report(step)
        if decision != "kept" or comparison is None:
            return False
        self.plan = other
        if loads[0].kind == "closed":
            self._settle(comparison.second)
        return True

    def _decide(
        self, purpose: str, other: Plan, loads: list[Load]
    ) -> tuple[Decision, Comparison | None, str]:
        plans = (self.plan, other)
        try:
            # Most are no better: that shows soon, and leaves time for the others.
            hopeless = 1 + self._margin / 2
            found = compare(self._bench, purpose, plans, loads, self._options, give_up_at=hopeless)
            if not better(found.ratios(), self._margin):
                return "not kept", found, "not ahead by more than the noise"
            # With servers started anew: a start can be lucky too.
            self._bench.fresh()
            again = compare(self._bench, f"{purpose}, confirmed", plans, loads, self._options)
        except TrialError as error:
            return "failed", None, str(error)
        if not better(again.ratios(), self._margin):
            return "not confirmed", again, "ahead at first, not with servers started anew"
        return "kept", again, "ahead twice"

    def _head_to_head(self) -> dict[str, Any]:
        self._tell("the end against the start")
        self._bench.fresh()
        comparison = compare(
            self._bench, "final", (self._start, self.plan), self._curve(), self._final_options()
        )
        result = {
            **comparison.summary(),
            "start": self._start,
            "tuned": self.plan,
            "curves": [
                [_medians(load, rounds) for load in rounds[0]]
                for rounds in (comparison.first, comparison.second)
            ],
            "spent_s": self._bench.spent_s,
            "untried": list(dict.fromkeys(self._untried)),
        }
        self._bench.note("final", result)
        return result

    def _settle(self, rounds: list[dict[Load, Measurement]]) -> None:
        self._best = best_load(rounds, self._options.p99_ms)
        at = self._best or min(rounds[0])
        self._reached = statistics.median(one[at].images_per_s for one in rounds)

    def _levels(self) -> Iterator[Load]:
        return (Load("closed", n) for n in LEVELS if n <= self._limits.max_concurrency)

    def _loads(self) -> list[Load]:
        """Where to compare: the best load, the next, and under an SLO the one before."""
        levels = list(self._levels())
        at = levels.index(self._best) if self._best in levels else 0
        first = at - 1 if self._options.p99_ms is not None else at
        return levels[max(0, first) : at + 2]

    def _curve(self) -> list[Load]:
        """The loads of the head-to-head: doubled from 1 on, and those compared at."""
        levels = [load for load in self._levels() if load.value in (1, 2, 4, 8, 16, 32, 64, 128)]
        chosen = {*self._loads(), *(load for load in levels if load <= max(self._loads()))}
        return sorted(chosen)

    def _final_options(self) -> Options:
        return Options(**{**vars(self._options), "rounds": self._limits.final_rounds})

    def _left(self) -> float:
        """Seconds for candidates: what the head-to-head takes is put by."""
        # Two servers are started, and a measurement is a little longer than its requests.
        final = 2 * self._limits.final_rounds * len(self._curve()) * self._options.seconds
        return self._limits.budget_s - self._bench.spent_s - 1.15 * final - 10

    def _cost(self, loads: int) -> float:
        """What a candidate takes that is not given up: it should not end in the middle."""
        return 2.2 * 2 * self._options.rounds * loads * self._options.seconds


def _medians(load: Load, rounds: list[dict[Load, Measurement]]) -> dict[str, float]:
    found = {
        name: statistics.median(getattr(one[load], name) for one in rounds)
        for name in ("images_per_s", "p50_ms", "p99_ms")
    }
    return {"concurrency": load.value, **found}
