"""The comparison itself: the sides by turns, round after round, and ratios within each round."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import measure_in_process
from peers.process import PeerProcess
from peers.settings import Setting, settings_of
from peers.sides import PeerSide, Side, measure

__all__ = ["TRIAL_CONCURRENCY", "Plan", "best_setting", "measure_rounds", "medians", "ratios"]

TRIAL_CONCURRENCY = 8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to measure.

    Attributes:
        photos: What is sent.
        concurrency: How many requests are under way.
        rounds: How often each measurement is made.
        seconds: How long each one takes.
        warm_up: How long a side is asked before.
    """

    photos: Sequence[bytes]
    concurrency: Sequence[int]
    rounds: int
    seconds: float
    warm_up: float


def best_setting(
    peer: str, repository: Path, plan: Plan, advance: Callable[[], object]
) -> tuple[Setting, dict[str, float]]:
    """Run a peer with each of its settings, one at a time, there and back.

    Returns:
        The setting with the greatest throughput at concurrency 8, and the throughput of each.
    """
    settings = settings_of(peer, len(os.sched_getaffinity(0)))
    tried: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for setting in (*settings, *reversed(settings)):
        with PeerProcess(setting, repository) as process:
            side = PeerSide(peer, process)
            row = measure(side, plan.photos, TRIAL_CONCURRENCY, plan.seconds, plan.warm_up)
        tried[setting].append(row["images_per_s"])
        advance()
    means = {setting: statistics.mean(rates) for setting, rates in tried.items()}
    best = max(means, key=lambda setting: means[setting])
    return best, {setting.title: rate for setting, rate in means.items()}


def measure_rounds(
    sides: Sequence[Side], repository: Path, plan: Plan, advance: Callable[[], object]
) -> list[dict[str, Any]]:
    """Measure every side at every concurrency, in each round, and the in-process limit.

    Returns:
        For each round the `limit`, and `sides`: name -> concurrency -> what was measured.
    """
    rounds = []
    for number in range(plan.rounds):
        processes = len(os.sched_getaffinity(0))
        limit = measure_in_process(repository, list(plan.photos), processes, plan.seconds)
        advance()
        measured: dict[str, dict[int, Any]] = {side.name: {} for side in sides}
        for concurrency in plan.concurrency:
            # Every second round backwards: what comes later is not always later.
            for side in sides if number % 2 == 0 else reversed(sides):
                measured[side.name][concurrency] = measure(
                    side, plan.photos, concurrency, plan.seconds, plan.warm_up
                )
                advance()
        rounds.append({"limit": limit, "sides": measured})
    return rounds


def ratios(
    rounds: Sequence[Mapping[str, Any]], side: str, concurrency: int, other: str
) -> list[float]:
    """Throughput of a side over that of another, in each round; `limit` is a side too."""
    found = []
    for one in rounds:
        theirs = one["limit"] if other == "limit" else one["sides"][other][concurrency]
        mine = one["sides"][side][concurrency]
        found.append(mine["images_per_s"] / theirs["images_per_s"])
    return found


def medians(rounds: Sequence[Mapping[str, Any]], side: str, concurrency: int) -> dict[str, float]:
    """The medians over the rounds of what was measured of a side."""
    rows = [one["sides"][side][concurrency] for one in rounds]
    return {
        key: statistics.median(row[key] for row in rows)
        for key, value in rows[0].items()
        if isinstance(value, (int, float))
    }
