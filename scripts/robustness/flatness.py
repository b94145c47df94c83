"""Whether a quantity sampled over time stays as it is, judged so that noise does not decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["COUNT", "MEMORY", "Limits", "Verdict", "judge", "judge_latency", "theil_sen"]

MIB = 2**20
HALF_HOUR_S = 1800.0
LEAST_SAMPLES = 8
LEAST_WINDOW_S = 100.0  # of the second half: a shorter one says nothing about half an hour
LEAST_INTERVALS = 9
MOST_POINTS = 1000  # slopes are taken between all pairs
LATENCY_SHARE = 0.2
STANDARD_ERRORS = 3.0

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Limits:
    """How far a quantity may move and still be called flat; of each pair the larger one counts.

    Attributes:
        slope_share: Growth in half an hour, as a share of its size.
        slope_least: The same, in its unit.
        step_share: Growth within the second half of the run, as a share of its size.
        step_least: The same, in its unit.
        noise_least: Growth within the second half that is too small to tell from noise.
    """

    slope_share: float
    slope_least: float
    step_share: float
    step_least: float
    noise_least: float


MEMORY = Limits(0.01, MIB, 0.05, 4 * MIB, MIB / 4)
COUNT = Limits(0.05, 2, 0.1, 4, 1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said of one quantity.

    Attributes:
        start: Its median in the first quarter of the second half of the run.
        end: Its median in the last quarter.
        slope_per_hour: Its Theil-Sen slope over the second half.
        flat: Whether it is flat; None if the run was too short to tell.
    """

    start: float
    end: float
    slope_per_hour: float
    flat: bool | None


def theil_sen(times_s: Array, values: Array) -> float:
    """The median of the slopes between all pairs of points, per second.

    Up to 29 % of the points may be anything without moving it far (Theil 1950, Sen 1968).

    Args:
        times_s: Ascending moments.
        values: The values then.
    """
    if len(times_s) < 2:
        return 0.0
    chosen = np.unique(np.linspace(0, len(times_s) - 1, MOST_POINTS).astype(int))
    times_s, values = times_s[chosen], values[chosen]
    first, second = np.triu_indices(len(times_s), 1)
    gaps = times_s[second] - times_s[first]
    slopes = (values[second] - values[first])[gaps > 0] / gaps[gaps > 0]
    return float(np.median(slopes)) if slopes.size else 0.0


def judge(times_s: Sequence[float], values: Sequence[float], limits: Limits) -> Verdict:
    """Judge the second half of a run: the first is taken for warming up.

    It is flat if its slope, over half an hour, is below the limit of slopes or its rise within the
    second half below the noise, and if the second half ends no higher than it began but for the
    limit of steps. The noise is twice the median distance of the samples from the line, and no
    less than `noise_least`. What falls is flat.

    Args:
        times_s: Ascending moments of the samples.
        values: The samples.
        limits: What is allowed.
    """
    times, series = np.asarray(times_s, np.float64), np.asarray(values, np.float64)
    if not len(times):
        return Verdict(0.0, 0.0, 0.0, None)
    second = times >= (times[0] + times[-1]) / 2
    times, series = times[second], series[second]
    slope = theil_sen(times, series)
    quarter = max(1, len(series) // 4)
    start, end = float(np.median(series[:quarter])), float(np.median(series[-quarter:]))
    window = float(times[-1] - times[0])
    flat: bool | None = None
    if len(series) >= LEAST_SAMPLES and window >= LEAST_WINDOW_S:
        size = float(np.median(series))
        line = slope * (times - times[0])
        residuals = series - line - np.median(series - line)
        noise = max(limits.noise_least, 2 * float(np.median(np.abs(residuals))))
        slow = slope * HALF_HOUR_S <= max(limits.slope_share * size, limits.slope_least)
        step = end - start <= max(limits.step_share * size, limits.step_least)
        flat = (slow or slope * window <= noise) and step
    return Verdict(start, end, slope * 3600, flat)


def judge_latency(quantiles_ms: Sequence[float]) -> Verdict:
    """Judge a quantile of the latency, taken in each interval of a run.

    It is flat if its median over the last third of the intervals is at most a fifth above that
    over the first third, or by less than three standard errors of the two medians.

    Args:
        quantiles_ms: One for each interval, those of the warming up left out.
    """
    series = np.asarray(quantiles_ms, np.float64)
    if len(series) < LEAST_INTERVALS:
        start, end = (float(series[at]) if len(series) else 0.0 for at in (0, -1))
        return Verdict(start, end, 0.0, None)
    third = len(series) // 3
    before, after = series[:third], series[-third:]
    start, end = float(np.median(before)), float(np.median(after))
    error = float(np.hypot(_standard_error(before), _standard_error(after)))
    flat = end - start <= max(LATENCY_SHARE * start, STANDARD_ERRORS * error)
    return Verdict(start, end, 0.0, flat)


def _standard_error(values: Array) -> float:
    """Of the median, for normal noise of the spread that the median distance tells."""
    spread = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    return 1.2533 * spread / float(np.sqrt(len(values)))
