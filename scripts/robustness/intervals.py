"""The load of a soak: open loops over three protocols, an interval after the other."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from detection_client import AsyncDetectionClient
from load import Ask, Outcome, client_ask, http_ask, open_loop, quantiles_ms
from robustness.service import Service

__all__ = ["SHARES", "Interval", "askers", "run_interval"]

SHARES = {"gRPC": 0.6, "gateway": 0.2, "HTTP": 0.2}
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Interval:
    """What became of the requests that were due in an interval.

    Attributes:
        t_s: Its start, in seconds from the start of the load.
        seconds: Its length.
        requests: How many requests were due.
        answered: How many of them were answered well.
        p50_ms: Median latency of those.
        p99_ms: Their 99th percentile.
        errors: How many failed, by protocol and kind.
        protocols: Requests and quantiles of each protocol.
    """

    t_s: float
    seconds: float
    requests: int
    answered: int
    p50_ms: float
    p99_ms: float
    errors: dict[str, int]
    protocols: dict[str, dict[str, float]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON and CSV."""
        return {
            "t_s": round(self.t_s, 1),
            "seconds": self.seconds,
            "offered_per_s": self.requests / self.seconds,
            "answered_per_s": self.answered / self.seconds,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
            "errors": self.errors,
            "protocols": self.protocols,
        }


@asynccontextmanager
async def askers(service: Service) -> AsyncIterator[dict[str, Ask]]:
    """Ways of asking a service, by protocol; none repeats a request that failed."""
    options: dict[str, Any] = {"timeout": TIMEOUT_S, "retries": 0}
    async with (
        AsyncDetectionClient(service.grpc_url, **options) as grpc,
        AsyncDetectionClient(service.http_url, **options) as http,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        ) as session,
    ):
        yield {
            "gRPC": client_ask(grpc),
            "HTTP": client_ask(http),
            "gateway": http_ask(
                session, f"{service.gateway_url}/detect", {"Content-Type": "image/jpeg"}
            ),
        }


async def run_interval(
    asks: Mapping[str, Ask],
    photos: Sequence[bytes],
    rate: float,
    seconds: float,
    number: int,
    t_s: float,
) -> Interval:
    """Offer a rate for some seconds, and wait for the answers.

    Args:
        asks: Ways of asking, by protocol.
        photos: The photos to send.
        rate: Requests a second, all protocols together.
        seconds: How long.
        number: Of the interval; its arrivals are drawn by it.
        t_s: When it starts, in seconds from the start of the load.
    """
    began = time.perf_counter()
    outcomes: list[Outcome] = await asyncio.gather(
        *(
            open_loop(asks[name], photos, rate * share, seconds, seed=3 * number + at)
            for at, (name, share) in enumerate(SHARES.items())
        )
    )
    named = dict(zip(SHARES, outcomes, strict=True))
    latencies = [latency for outcome in outcomes for latency in outcome.latencies_s]
    errors = Counter[str]()
    for name, outcome in named.items():
        errors.update({f"{name} {kind}": count for kind, count in outcome.errors.items()})
    p50, _, p99 = quantiles_ms(latencies)
    protocols = {}
    for name, outcome in named.items():
        one = quantiles_ms(outcome.latencies_s)
        protocols[name] = {"requests": len(outcome.answers), "p50_ms": one[0], "p99_ms": one[2]}
    return Interval(
        t_s=t_s,
        seconds=min(seconds, time.perf_counter() - began),
        requests=sum(len(outcome.answers) for outcome in outcomes),
        answered=len(latencies),
        p50_ms=p50,
        p99_ms=p99,
        errors=dict(errors),
        protocols=protocols,
    )
