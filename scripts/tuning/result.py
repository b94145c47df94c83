"""What a tuning found, gathered from its log."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuning.settings import show

__all__ = ["Result", "describe"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a tuning found.

    Attributes:
        header: What it was run on and asked for.
        noise: The start against itself; empty where that is not measured yet.
        steps: What came of each candidate.
        final: The end against the start; empty where that is not measured yet.
        diff: What the end changes in the configurations.
        measurements: How many there were.
        spent_s: What they took, with the starts of servers.
        cores_used_by_others: Cores that processes of no part in it used meanwhile, on average.
    """

    header: dict[str, Any]
    noise: dict[str, Any]
    steps: list[dict[str, Any]]
    final: dict[str, Any]
    diff: str
    measurements: int
    spent_s: float
    cores_used_by_others: float

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> Result:
        """Gather it from the records of a log."""

        def last(kind: str) -> dict[str, Any]:
            found = [record["value"] for record in records if record["kind"] == kind]
            return dict(found[-1]) if found else {}

        measured = [record["value"] for record in records if record["kind"] == "measure"]
        others = [(one.get("details") or {}).get("cores_used_by_others", 0.0) for one in measured]
        return cls(
            header=last("header"),
            noise=last("noise"),
            steps=[record["value"] for record in records if record["kind"] == "step"],
            final=last("final"),
            diff=last("diff").get("text", ""),
            measurements=len(measured),
            spent_s=sum(one["took_s"] for one in measured),
            cores_used_by_others=statistics.fmean(others) if others else 0.0,
        )

    @property
    def changes(self) -> dict[str, tuple[int | str, int | str]]:
        """The settings that the end has otherwise than the start: from and to."""
        start, tuned = self.final.get("start", {}), self.final.get("tuned", {})
        return {name: (value, tuned[name]) for name, value in start.items() if tuned[name] != value}

    @property
    def keeps_slo(self) -> bool:
        """Whether the end keeps the limit of the SLO at some load."""
        return not self.final or self.final["loads"][1] is not None

    def as_json(self) -> dict[str, Any]:
        """All of it as nested dictionaries."""
        return vars(self)


def describe(step: Mapping[str, Any]) -> str:
    """What came of a candidate, in a line."""
    text = f"{step['setting']}: {show(step['from'])} -> {show(step['to'])}: {step['decision']}"
    if step["ratio"] is None:
        return f"{text} ({step['reason']})"
    low, high = min(step["ratios"]), max(step["ratios"])
    return f"{text}, {step['ratio']:.3f} ({low:.3f} to {high:.3f})"
