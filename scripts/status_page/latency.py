"""Quantiles of latencies, and where they come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["QUANTILES", "Latency", "histogram_quantile", "of_buckets", "of_summaries"]

QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Latency:
    """Quantiles in milliseconds.

    Attributes:
        p50: The median.
        p90: The 0.9 quantile.
        p99: The 0.99 quantile.
        source: What they are made from.
    """

    p50: float
    p90: float
    p99: float
    source: str


def histogram_quantile(quantile: float, buckets: Mapping[float, float]) -> float | None:
    """A quantile by linear interpolation within its bucket, as PromQL's function of this name.

    Args:
        quantile: From 0 to 1.
        buckets: How many values are at most each bound; the greatest bound is infinity.

    Returns:
        The quantile, None of no values; the greatest finite bound if it is above that.
    """
    total = buckets.get(math.inf, 0.0)
    if total <= 0:
        return None
    rank, below, lower = quantile * total, 0.0, 0.0
    for bound in sorted(buckets):
        count = buckets[bound]
        if count >= rank:
            if math.isinf(bound):
                return lower
            share = (rank - below) / (count - below) if count > below else 0.0
            return lower + (bound - lower) * share
        below, lower = count, bound
    return lower


def of_buckets(buckets: Mapping[float, float], source: str) -> Latency | None:
    """The quantiles of a histogram in seconds, if there are any values in it."""
    values = [histogram_quantile(quantile, buckets) for quantile in QUANTILES]
    p50, p90, p99 = (None if value is None else value * 1000 for value in values)
    if p50 is None or p90 is None or p99 is None:
        return None
    return Latency(p50, p90, p99, source)


def of_summaries(servers: Sequence[Mapping[str, float]]) -> Latency | None:
    """The quantiles that Triton's summaries tell, those of the slowest server.

    Args:
        servers: For each server microseconds by quantile; NaN where it has seen no requests.
    """
    found = []
    for quantile in QUANTILES:
        values = [server.get(str(quantile), math.nan) / 1000 for server in servers]
        known = [value for value in values if not math.isnan(value)]
        if not known:
            return None
        found.append(max(known))
    p50, p90, p99 = found
    return Latency(p50, p90, p99, "Triton's summary, last minute")
