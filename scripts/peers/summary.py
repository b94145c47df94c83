"""What a comparison comes to: medians, ratios, and how far the ensemble is ahead."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from peers.rounds import medians, ratios

__all__ = ["Claim", "as_dicts", "claims", "summarise"]

FLASK_FACTOR = 3.0
FROM_CONCURRENCY = 4


@dataclass(frozen=True)
class Claim:
    """Something that a comparison is to show.

    Attributes:
        text: What.
        held: Whether it did.
        ratios: Concurrency -> the median of the ratio over the rounds.
    """

    text: str
    held: bool
    ratios: Mapping[int, float]

    def __str__(self) -> str:
        found = ", ".join(f"{ratio:.2f} at {level}" for level, ratio in self.ratios.items())
        return f"{self.text}: {'held' if self.held else 'did not hold'} ({found})"


def summarise(
    rounds: Sequence[Mapping[str, Any]], concurrency: Sequence[int], others: Mapping[str, str]
) -> dict[str, Any]:
    """Put the rounds together.

    Args:
        rounds: As `rounds.measure_rounds` returns them.
        concurrency: The concurrencies that were measured.
        others: What throughputs are divided by: `limit` or a side, each with a name for the ratio.

    Returns:
        Name of the side -> concurrency -> the medians of what was measured and of the ratios,
        and all errors by their kind.
    """
    summary: dict[str, Any] = {}
    for side in rounds[0]["sides"]:
        summary[side] = {}
        for level in concurrency:
            row: dict[str, Any] = dict(medians(rounds, side, level))
            row["ratios"] = {
                key: statistics.median(ratios(rounds, side, level, other))
                for key, other in others.items()
            }
            errors: Counter[str] = Counter()
            for one in rounds:
                errors.update(one["sides"][side][level]["errors"])
            row["errors"] = dict(sorted(errors.items()))
            summary[side][level] = row
    return summary


def claims(summary: Mapping[str, Any], ensembles: Sequence[str]) -> list[Claim]:
    """Whether the ensembles are ahead of the peers that were measured, from concurrency 4 up."""
    found = []
    for name in ensembles:
        rows = {
            level: row["ratios"]
            for level, row in summary[name].items()
            if level >= FROM_CONCURRENCY
        }
        for key, factor, text in (
            ("flask", FLASK_FACTOR, f"{name} >= {FLASK_FACTOR:g} x Flask"),
            ("litserve", 1.0, f"{name} ahead of LitServe"),
        ):
            levels = {level: row[key] for level, row in rows.items() if key in row}
            if levels:
                held = all(
                    ratio >= factor if key == "flask" else ratio > factor
                    for ratio in levels.values()
                )
                where = f"at every concurrency from {FROM_CONCURRENCY} up"
                found.append(Claim(f"{text} {where}", held, levels))
    return found


def as_dicts(found: Sequence[Claim]) -> list[dict[str, Any]]:
    """For JSON."""
    return [{**asdict(claim), "sentence": str(claim)} for claim in found]
