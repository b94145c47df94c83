"""Load for measurements: requests in a closed loop, or at random moments whatever the answers."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from detection_client import AsyncDetectionClient, DetectionClientError

# Sends one photo; answers "" or, where it failed, the kind of the error.
Ask = Callable[[bytes], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request.

    Attributes:
        moment: When it was due, in seconds from the start of the load.
        latency_s: From then to its answer, in seconds.
        error: The kind of its error; "" if it was answered well.
    """

    moment: float
    latency_s: float
    error: str = ""


@dataclass(slots=True)
class Outcome:
    """What became of a load.

    Attributes:
        seconds: How long requests were sent.
        answers: Of all requests; none is left out.
    """

    seconds: float = 0.0
    answers: list[Answer] = field(default_factory=list)

    @property
    def errors(self) -> Counter[str]:
        """How many requests failed, by the kind of their error."""
        return Counter(answer.error for answer in self.answers if answer.error)

    @property
    def latencies_s(self) -> list[float]:
        """Of the requests answered well."""
        return [answer.latency_s for answer in self.answers if not answer.error]

    def summary(self) -> dict[str, Any]:
        """Rates in requests a second, latency quantiles in milliseconds, errors by kind."""
        p50, p95, p99 = quantiles_ms(self.latencies_s)
        # Answered by the end of the load: what was still under way then is not of its rate.
        in_time = sum(
            not answer.error and answer.moment + answer.latency_s <= self.seconds
            for answer in self.answers
        )
        failed = [answer.latency_s for answer in self.answers if answer.error]
        return {
            "seconds": self.seconds,
            "requests": len(self.answers),
            "offered_per_s": len(self.answers) / self.seconds,
            "images_per_s": in_time / self.seconds,
            "p50_ms": p50,
            "p95_ms": p95,
            "p99_ms": p99,
            "failed_p99_ms": quantiles_ms(failed)[2],
            "longest_ms": max((answer.latency_s for answer in self.answers), default=0.0) * 1e3,
            "errors": dict(sorted(self.errors.items())),
        }


def quantiles_ms(latencies_s: Sequence[float]) -> tuple[float, float, float]:
    """The quantiles 0.5, 0.95 and 0.99 in milliseconds; zeros where there are no latencies."""
    if not latencies_s:
        return 0.0, 0.0, 0.0
    p50, p95, p99 = np.percentile(np.asarray(latencies_s) * 1e3, (50, 95, 99))
    return float(p50), float(p95), float(p99)


async def closed_loop(
    ask: Ask, photos: Sequence[bytes], concurrency: int, seconds: float
) -> Outcome:
    """Keep as many requests under way as ``concurrency``: each is sent when another is answered."""
    outcome = Outcome()
    start = time.perf_counter()

    async def work(worker: int) -> None:
        count = worker
        while (now := time.perf_counter()) - start < seconds:
            error = await ask(photos[count % len(photos)])
            outcome.answers.append(Answer(now - start, time.perf_counter() - now, error))
            count += 1

    await asyncio.gather(*(work(worker) for worker in range(concurrency)))
    outcome.seconds = seconds
    return outcome


async def open_loop(
    ask: Ask, photos: Sequence[bytes], rate: float, seconds: float, seed: int = 1
) -> Outcome:
    """Send requests at random moments (a Poisson process), and wait for all answers.

    Latencies count from the moment a request was due, also where the sender came late: otherwise a
    server that stalls would look well, since it stalls the sender too.
    """
    outcome = Outcome()
    arrivals = random.Random(seed)
    start = time.perf_counter()

    async def send(photo: bytes, moment: float) -> None:
        error = await ask(photo)
        took = time.perf_counter() - start - moment
        outcome.answers.append(Answer(moment, took, error))

    moment, tasks = 0.0, set[asyncio.Task[None]]()
    count = 0
    while (moment := moment + arrivals.expovariate(rate)) < seconds:
        await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
        task = asyncio.create_task(send(photos[count % len(photos)], moment))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        count += 1
    await asyncio.gather(*tasks)
    outcome.seconds = seconds
    return outcome


def client_ask(client: AsyncDetectionClient, **options: Any) -> Ask:
    """Asks by the client library."""

    async def ask(photo: bytes) -> str:
        try:
            await client.detect(photo, **options)
        except DetectionClientError as error:
            return type(error).__name__
        return ""

    return ask


def http_ask(
    session: aiohttp.ClientSession, url: str, headers: Mapping[str, str] | None = None
) -> Ask:
    """Asks by a POST with the photo as its body."""

    async def ask(photo: bytes) -> str:
        try:
            async with session.post(url, data=photo, headers=headers) as response:
                await response.read()
                return "" if response.status == 200 else f"HTTP {response.status}"
        except (aiohttp.ClientError, TimeoutError) as error:
            return type(error).__name__

    return ask
