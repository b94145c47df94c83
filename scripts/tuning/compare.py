"""Two plans against each other, by turns: what a machine's drift does to one it does to both."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tuning.measuring import Load, LoggedBench, Measurement
from tuning.settings import Plan

__all__ = ["Comparison", "Options", "best_load", "better", "compare", "noise_of"]

_MOST = 100.0  # a ratio to next to nothing says no more than this

Rounds = list[dict[Load, Measurement]]


@dataclass(frozen=True, kw_only=True)
class Options:
    """How plans are compared.

    Attributes:
        p99_ms: What 99 of 100 requests have to be answered within; None for no such limit.
        seconds: Length of a measurement.
        rounds: How often each plan is measured for a decision.
        margin: By how much of itself a plan must be better, at least.
        seed: For the order of the turns.
    """

    p99_ms: float | None = None
    seconds: float = 1.5
    rounds: int = 4
    margin: float = 0.02
    seed: int = 1


@dataclass
class Comparison:
    """What two plans did in the same rounds.

    Attributes:
        first: Of the plan that is in place, by load, a dictionary a round.
        second: Of the other.
        options: How they were compared.
    """

    options: Options
    first: Rounds = field(default_factory=list)
    second: Rounds = field(default_factory=list)

    def ratios(self) -> list[float]:
        """Of each round, how much the second does of what the first does.

        It is the throughput at the best load within the limits, each plan's own. Where one keeps
        the limits at no load, it is how much shorter latencies are at the lowest load. Of an open
        load it is what is answered within the limit of the SLO, whatever is refused.
        """
        if all(load.kind == "open" for load in self.first[0]):
            return [
                _over(_goodput(other), _goodput(one))
                for one, other in zip(self.first, self.second, strict=True)
            ]
        loads = [best_load(rounds, self.options.p99_ms) for rounds in (self.first, self.second)]
        pairs = zip(self.first, self.second, strict=True)
        if loads[0] is None or loads[1] is None:
            lowest = min(self.first[0])
            if any(one[lowest].failed for one in self.second):
                return [0.0] * len(self.second)
            return [_over(one[lowest].p99_ms, other[lowest].p99_ms) for one, other in pairs]
        return [_over(_rate(other[loads[1]]), _rate(one[loads[0]])) for one, other in pairs]

    def summary(self) -> dict[str, Any]:
        """The ratio over the rounds, and at which loads."""
        ratios = self.ratios()
        loads = [best_load(rounds, self.options.p99_ms) for rounds in (self.first, self.second)]
        return {
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "loads": [load.value if load is not None else None for load in loads],
        }


def _over(value: float, other: float) -> float:
    if other > 0:
        return min(_MOST, value / other)
    return 1.0 if value == other else _MOST


def _goodput(measured: dict[Load, Measurement]) -> float:
    return sum(one.goodput_per_s for one in measured.values())


def _rate(measured: Measurement) -> float:
    return measured.images_per_s


def best_load(rounds: Rounds, p99_ms: float | None) -> Load | None:
    """The load of the greatest throughput within the limits, by medians over rounds.

    Loads that give within a hundredth of that count as equal: the lowest of them is taken.

    Returns:
        None where the limits are kept at no load.
    """
    rates = {}
    for load in rounds[0]:
        if any(one[load].failed for one in rounds):
            continue
        if p99_ms is None or statistics.median(one[load].p99_ms for one in rounds) <= p99_ms:
            rates[load] = statistics.median(_rate(one[load]) for one in rounds)
    if not rates:
        return None
    greatest = max(rates.values())
    return min(load for load, rate in rates.items() if rate >= 0.99 * greatest)


def compare(
    bench: LoggedBench,
    purpose: str,
    plans: tuple[Plan, Plan],
    loads: Sequence[Load],
    options: Options,
    *,
    give_up_at: float | None = None,
) -> Comparison:
    """Measure two plans by turns.

    Args:
        bench: Measures.
        purpose: What for; for the log.
        plans: The one in place, and the other.
        loads: To put both under.
        options: How.
        give_up_at: End after two rounds or more that show the other at this ratio or under it.

    Raises:
        TrialError: One cannot be measured.
    """
    result = Comparison(options)
    # Of its own for each comparison, and the same whenever it is made.
    order = random.Random(f"{options.seed} {purpose} {sorted(plans[1].items())}")
    same = plans[0] == plans[1]
    for number in range(options.rounds):
        found: tuple[dict[Load, Measurement], dict[Load, Measurement]] = ({}, {})
        for load in loads:
            sides = [0, 1]
            order.shuffle(sides)
            for side in sides:
                found[side][load] = bench.measure(
                    f"{purpose}, round {number + 1}",
                    plans[side],
                    side if same else 0,
                    load,
                    options.seconds,
                )
        result.first.append(found[0])
        result.second.append(found[1])
        enough = number >= 1 and give_up_at is not None
        if enough and statistics.median(result.ratios()) <= (give_up_at or 0):
            break
    return result


def better(ratios: Sequence[float], margin: float) -> bool:
    """Whether the other plan is ahead by more than the noise, and not by one lucky round.

    Args:
        ratios: Of each round.
        margin: What the median must be above 1 by.
    """
    ahead = sum(ratio > 1 for ratio in ratios)
    needed = len(ratios) if len(ratios) < 6 else math.ceil(0.8 * len(ratios))
    return statistics.median(ratios) > 1 + margin and ahead >= needed


def noise_of(ratios: Sequence[float]) -> float:
    """What a median over so many rounds can show of a plan against itself.

    Two standard errors of the median, which is 1.25 times that of the mean, of the logarithms.
    What they spread around is 0, and not their own mean: two servers can differ throughout.
    """
    squares = [math.log(ratio) ** 2 for ratio in ratios if ratio > 0]
    return 2 * 1.25 * math.sqrt(sum(squares)) / len(squares) if squares else 0.0
