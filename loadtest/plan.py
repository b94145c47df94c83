"""Scenarios as phases of the load over time."""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.options import LoadOptions

__all__ = ["Phase", "make_plan"]

_SOAK_WINDOWS = 10
_RAMP_STEPS = 6


@dataclass(frozen=True)
class Phase:
    """A stretch of a scenario.

    Attributes:
        name: What the report calls it.
        level: The load: users of closed arrival, requests a second of open arrival.
        seconds: How long it lasts.
        settle: How many of its first seconds are not counted.
    """

    name: str
    level: int
    seconds: float
    settle: float


def make_plan(options: LoadOptions) -> list[Phase]:
    """The phases of the scenario that was asked for."""
    peak = options.concurrency if options.arrival == "closed" else max(1, round(options.rate))
    seconds, settle = options.duration, options.settle
    if options.scenario == "ramp":
        levels = options.levels or _default_levels(options.arrival, peak)
        return [Phase(_name(level, options.unit), level, seconds, settle) for level in levels]
    if options.scenario == "spike":
        spike = max(peak + 1, round(peak * options.spike_factor))
        return [
            Phase("before", peak, seconds, settle),
            Phase("spike", spike, seconds, settle),
            Phase("after", peak, seconds, settle),
        ]
    if options.scenario == "soak":  # in windows, so that a drift shows
        window = seconds / _SOAK_WINDOWS
        return [
            Phase(
                f"window {number + 1}",
                peak,
                window + (settle if number == 0 else 0.0),
                settle if number == 0 else 0.0,
            )
            for number in range(_SOAK_WINDOWS)
        ]
    return [Phase(options.scenario, peak, seconds, settle)]


def _name(level: int, unit: str) -> str:
    return "1 user" if (level, unit) == (1, "users") else f"{level} {unit}"


def _default_levels(arrival: str, peak: int) -> tuple[int, ...]:
    if arrival == "closed":  # doubling: the knee is near the number of instances
        doubled = [1]
        while doubled[-1] * 2 < peak:
            doubled.append(doubled[-1] * 2)
        return tuple(dict.fromkeys([*doubled, peak]))
    steps = {max(1, round(peak * step / _RAMP_STEPS)) for step in range(1, _RAMP_STEPS + 1)}
    return tuple(sorted(steps))
