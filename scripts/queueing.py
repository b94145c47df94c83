"""How long requests wait for one of several servers: Erlang's C, and Allen and Cunneen's M/G/c.

Requests arrive at random moments (a Poisson process), wait in one line, and are served by the
first server that is free. For servers whose times vary other than exponentially, Allen and
Cunneen's approximation scales the mean wait of M/M/c by (1 + cv^2) / 2, cv being the service
times' coefficient of variation (A. O. Allen, Probability, Statistics, and Queueing Theory, 1990);
here the whole distribution of the wait is scaled, which keeps its exponential tail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Station", "servers_needed", "waiting_probability"]


def waiting_probability(servers: int, load: float) -> float:
    """Erlang's C: the share of requests that find every server busy.

    Args:
        servers: How many there are.
        load: Offered load in servers (Erlang): arrival rate x mean service time.

    Returns:
        From 0 to 1; 1 where the load is not less than the servers.

    Raises:
        ValueError: There are no servers, or the load is negative.
    """
    if servers < 1 or load < 0:
        raise ValueError(f"{servers} servers, load {load}: at least 1 and at least 0 are wanted")
    if load >= servers:
        return 1.0
    blocked = 1.0  # Erlang's B, by its recursion over the servers: no factorial overflows
    for count in range(1, servers + 1):
        blocked = load * blocked / (count + load * blocked)
    return blocked / (1 - load / servers * (1 - blocked))


@dataclass(frozen=True, slots=True)
class Station:
    """Servers behind one line.

    Attributes:
        servers: How many, here cores.
        service_s: Mean time of one request at one server, in seconds.
        variation: Coefficient of variation of that time.
        latency_s: Time of a request that does not wait, in seconds; also what is spent outside of
            the servers.
    """

    servers: int
    service_s: float
    variation: float
    latency_s: float

    @property
    def capacity_per_s(self) -> float:
        """The rate that cannot be exceeded."""
        return self.servers / self.service_s

    def wait_s(self, rate: float, quantile: float) -> float:
        """A quantile of the time that requests wait, in seconds; infinite from the capacity on."""
        load = rate * self.service_s
        if load >= self.servers:
            return math.inf
        waiting = waiting_probability(self.servers, load)
        if waiting <= 1 - quantile:
            return 0.0
        spread = (1 + self.variation**2) / 2
        rest = self.capacity_per_s - rate
        return math.log(waiting / (1 - quantile)) / rest * spread

    def response_s(self, rate: float, quantile: float) -> float:
        """A quantile of the time from a request to its answer, in seconds."""
        return self.latency_s + self.wait_s(rate, quantile)


def servers_needed(station: Station, rate: float, limit_s: float, quantile: float) -> int | None:
    """The fewest servers like the station's that keep a quantile of the response in a limit.

    Args:
        station: What one server does; its number of servers does not matter.
        rate: Requests a second.
        limit_s: Longest response, in seconds.
        quantile: Of the responses, such as 0.99.

    Returns:
        How many; None where the limit is under the time of a request that does not wait.
    """
    if limit_s <= station.latency_s:
        return None
    servers = max(1, math.ceil(rate * station.service_s))
    while True:
        candidate = Station(servers, station.service_s, station.variation, station.latency_s)
        if candidate.response_s(rate, quantile) <= limit_s:
            return servers
        servers += 1
