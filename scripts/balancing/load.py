"""Load on several servers while one of them fails, and what clients and servers saw of it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from balancing.servers import Launcher
from detection_client import AsyncDetectionClient, DetectionClientError
from load import Answer, Outcome, closed_loop

__all__ = ["WINDOW_S", "Record", "Traffic", "run_load"]

ENSEMBLE = "detection"
_SAMPLE_S = 0.25
WINDOW_S = 1.5
FAIR_SHARE = 0.5  # of an even share: as much as a server needs to count as having its part


@dataclass
class Traffic:
    """How many requests each server has answered, at moments of the load.

    Attributes:
        samples: Moment in seconds -> the count of every server, which begins anew with a restart.
    """

    samples: list[tuple[float, list[int]]] = field(default_factory=list)

    def even_at(self, after: float) -> float | None:
        """When a window begins in which every server has its part; None where there is none.

        Args:
            after: The moment from which on it is looked for.
        """
        for moment, counts in self.samples:
            before = self._counts_at(moment - WINDOW_S)
            if moment - WINDOW_S < after or before is None:
                continue
            shares = [now - then for now, then in zip(counts, before, strict=True)]
            if min(shares) >= FAIR_SHARE * sum(shares) / len(shares) > 0:
                return moment - WINDOW_S
        return None

    def _counts_at(self, moment: float) -> list[int] | None:
        earlier = [counts for time_, counts in self.samples if time_ <= moment]
        return earlier[-1] if earlier else None


@dataclass
class Record:
    """What became of a load.

    Attributes:
        answers: Of all requests, by protocol.
        messages: What the errors said, and how often.
        traffic: What the servers answered.
        events: What was done, by name: the moment in seconds from the start of the load.
    """

    answers: dict[str, list[Answer]]
    messages: Counter[str]
    traffic: Traffic
    events: dict[str, float]

    def errors(self, protocol: str | None = None) -> Counter[str]:
        """Requests that failed, by the kind of their error."""
        chosen = [self.answers[protocol]] if protocol else self.answers.values()
        return Counter(one.error for answers in chosen for one in answers if one.error)

    def longest_s(self, protocol: str, start: float, end: float) -> float:
        """The longest latency of the requests that were sent between two moments."""
        return max(
            (one.latency_s for one in self.answers[protocol] if start <= one.moment < end),
            default=0.0,
        )


# Called in a thread of its own; `note` gives a moment its name.
Disturb = Callable[[Callable[[str], None]], None]


def run_load(
    urls: Mapping[str, str | Sequence[str]],
    servers: Sequence[Launcher],
    photos: Sequence[bytes],
    disturb: Disturb,
    *,
    concurrency: int,
    seconds: float,
    retries: int,
) -> Record:
    """Send requests over each protocol in a closed loop, and disturb the servers meanwhile.

    Args:
        urls: Protocol -> what the client is given.
        servers: Whose traffic is counted.
        photos: What is sent, by turns.
        disturb: Does its work while the load runs; it has to end before.
        concurrency: Requests under way at once over each protocol.
        seconds: How long requests are sent.
        retries: The client's.

    Raises:
        Exception: Whatever ``disturb`` raised.
    """
    start = time.perf_counter()
    traffic, messages = Traffic(), Counter[str]()
    events: dict[str, float] = {}
    ended = threading.Event()
    failures: list[BaseException] = []

    def note(name: str) -> None:
        events[name] = time.perf_counter() - start

    def work() -> None:
        try:
            disturb(note)
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            failures.append(error)

    def sample() -> None:
        while not ended.wait(_SAMPLE_S):
            moment = time.perf_counter() - start
            counts = [server.answered(ENSEMBLE) for server in servers]
            traffic.samples.append((moment, counts))

    threads = [threading.Thread(target=work), threading.Thread(target=sample)]
    for thread in threads:
        thread.start()
    try:
        outcomes = asyncio.run(
            _send(urls, photos, messages, concurrency=concurrency, seconds=seconds, retries=retries)
        )
    finally:
        threads[0].join()
        ended.set()
        threads[1].join()
    if failures:
        raise failures[0]
    return Record({name: one.answers for name, one in outcomes.items()}, messages, traffic, events)


async def _send(
    urls: Mapping[str, str | Sequence[str]],
    photos: Sequence[bytes],
    messages: Counter[str],
    **options: Any,
) -> dict[str, Outcome]:
    async def send(url: str | Sequence[str]) -> Outcome:
        async with AsyncDetectionClient(url, retries=options["retries"], timeout=10) as client:

            async def ask(photo: bytes) -> str:
                try:
                    await client.detect(photo)
                except DetectionClientError as error:
                    messages[f"{type(error).__name__}: {error}"] += 1
                    return type(error).__name__
                return ""

            return await closed_loop(ask, photos, options["concurrency"], options["seconds"])

    outcomes = await asyncio.gather(*(send(url) for url in urls.values()))
    return dict(zip(urls, outcomes, strict=True))
