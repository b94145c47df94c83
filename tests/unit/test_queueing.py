"""The queueing model against known values, and against a simulation."""

from __future__ import annotations

import heapq
import math
import random

import numpy as np
import pytest

from queueing import Station, servers_needed, waiting_probability


@pytest.mark.parametrize(
    ("servers", "load", "wanted"),
    [(1, 0.5, 0.5), (2, 0.0, 0.0), (2, 1.0, 1 / 3), (2, 2.5, 1.0), (10, 8.0, 0.409180)],
)
def test_erlang_c(servers: int, load: float, wanted: float) -> None:
    assert waiting_probability(servers, load) == pytest.approx(wanted, abs=1e-6)


def test_many_servers_do_not_overflow() -> None:
    assert 0 < waiting_probability(2000, 1990) < 1


@pytest.mark.parametrize(("servers", "load"), [(0, 0.5), (2, -1.0)])
def test_nonsense_is_refused(servers: int, load: float) -> None:
    with pytest.raises(ValueError, match="at least"):
        waiting_probability(servers, load)


def simulated(station: Station, rate: float, quantile: float, draw: random.Random) -> float:
    """First come, first served; service times from a gamma distribution."""
    free, now, responses = [0.0] * station.servers, 0.0, []
    shape = 1 / station.variation**2
    for _ in range(100_000):
        now += draw.expovariate(rate)
        start = max(now, free[0])
        served = draw.gammavariate(shape, station.service_s / shape)
        heapq.heapreplace(free, start + served)
        responses.append(start - now)
    return float(np.quantile(responses, quantile)) + station.latency_s


@pytest.mark.parametrize("variation", [0.3, 1.0])
@pytest.mark.parametrize("share", [0.5, 0.8])
@pytest.mark.parametrize("servers", [1, 2, 8])
def test_against_a_simulation(servers: int, share: float, variation: float) -> None:
    station = Station(servers, 0.02, variation, 0.03)
    rate = share * station.capacity_per_s
    wanted = simulated(station, rate, 0.99, random.Random(7))
    assert station.response_s(rate, 0.99) == pytest.approx(wanted, rel=0.2)


def test_over_capacity() -> None:
    station = Station(2, 0.02, 0.3, 0.03)
    assert station.capacity_per_s == pytest.approx(100)
    assert station.response_s(100, 0.99) == math.inf
    assert station.response_s(1, 0.5) == 0.03


def test_servers_needed() -> None:
    station = Station(1, 0.02, 0.3, 0.025)
    needed = servers_needed(station, 200, 0.06, 0.99)
    assert needed is not None
    for servers, held in ((needed, True), (needed - 1, False)):
        response = Station(servers, 0.02, 0.3, 0.025).response_s(200, 0.99)
        assert (response <= 0.06) is held
    assert servers_needed(station, 200, 0.02, 0.99) is None
