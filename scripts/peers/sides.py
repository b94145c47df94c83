"""What is compared, each side with the means to ask it and to see what it costs."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

from benchmark import server_cpu_s
from detection_client import AsyncDetectionClient, DetectionClient
from detserve.detections import Detections
from load import Ask, Outcome, client_ask, closed_loop, http_ask
from local_server import TritonServer
from peers.errors import ComparisonError
from peers.process import PeerProcess

__all__ = [
    "EnsembleSide",
    "PeerSide",
    "Side",
    "agreement",
    "check_same_answers",
    "difference",
    "measure",
]

_TIMEOUT_S = 60
_BOX_TOLERANCE_PX = 0.5
_SCORE_TOLERANCE = 1e-3
# An answer is short: to compress it would cost the service more than it saves.
_HEADERS = {"Content-Type": "application/octet-stream", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class PeerSide:
    """A peer, asked over HTTP with connections that are kept open."""

    name: str
    process: PeerProcess

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[Ask]:
        """What sends it a photo."""
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
        ) as session:
            yield http_ask(session, self.process.url, _HEADERS)

    def cpu_s(self) -> float:
        """Processor seconds that its processes have used."""
        return self.process.cpu_s()

    def resume(self) -> None:
        """Its turn begins."""
        self.process.resume()

    def pause(self) -> None:
        """Its turn is over."""
        self.process.pause()

    def detect(self, photo: bytes) -> dict[str, Any]:
        """Its answer to one photo.

        Raises:
            ComparisonError: It refuses the photo.
        """
        request = urllib.request.Request(self.process.url, data=photo, headers=_HEADERS)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                answer: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read().decode(errors="replace")
            raise ComparisonError(f"{self.name} answers {error.code}: {text}") from error
        return answer


@dataclass(frozen=True)
class EnsembleSide:
    """An ensemble in Triton, asked by the client library over gRPC or HTTP."""

    name: str
    server: TritonServer
    models: Mapping[str, str]
    url: str

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[Ask]:
        """What sends it a photo."""
        async with AsyncDetectionClient(self.url, timeout=_TIMEOUT_S) as client:
            yield client_ask(client)

    def cpu_s(self) -> float:
        """Processor seconds that its processes have used."""
        return sum(server_cpu_s(self.server, self.models).values())

    def resume(self) -> None:
        """Its turn begins: it is never stopped, for its supervisor would take that for a fault."""

    def pause(self) -> None:
        """Its turn is over."""


Side = PeerSide | EnsembleSide


def check_same_answers(ensemble: EnsembleSide, peer: PeerSide, photos: Sequence[bytes]) -> None:
    """A peer must find in each photo what the ensemble finds.

    Raises:
        ComparisonError: It finds something else.
    """
    peer.resume()
    try:
        with DetectionClient(ensemble.url, timeout=_TIMEOUT_S) as client:
            for number, photo in enumerate(photos):
                expected, found = client.detect(photo), peer.detect(photo)["detections"]
                if (other := difference(expected, found)) is not None:
                    raise ComparisonError(
                        f"{peer.name} is no peer: in photo {number + 1} it finds {other}"
                    )
    finally:
        peer.pause()


def agreement(ensemble: EnsembleSide, other: EnsembleSide, photos: Sequence[bytes]) -> str:
    """What another ensemble's answers differ by, in words."""
    same, box, score = 0, 0.0, 0.0
    with (
        DetectionClient(ensemble.url, timeout=_TIMEOUT_S) as client,
        DetectionClient(other.url, timeout=_TIMEOUT_S) as other_client,
    ):
        for photo in photos:
            expected, found = client.detect(photo), other_client.detect(photo)
            if expected.class_ids.tolist() != found.class_ids.tolist():
                continue
            same += 1
            if len(found):
                box = max(box, float(np.abs(found.boxes_xyxy - expected.boxes_xyxy).max()))
                score = max(score, float(np.abs(found.scores - expected.scores).max()))
    return (
        f"finds the same objects in the same order in {same} of {len(photos)} photos, within"
        f" {box:.2g} px and {score:.2g} of the score"
    )


def difference(expected: Detections, found: Sequence[Mapping[str, Any]]) -> str | None:
    """What a peer's answer differs by from the ensemble's; None if it is the same."""
    if len(found) != len(expected):
        return f"{len(found)} objects, the ensemble {len(expected)}"
    for theirs, ours in zip(found, expected, strict=True):
        box = np.abs(np.subtract(theirs["box"], ours.box_xyxy)).max()
        score = abs(theirs["score"] - ours.score)
        if theirs["class_id"] != ours.class_id:
            return f"a {theirs['label']} where the ensemble finds a {ours.label}"
        if box > _BOX_TOLERANCE_PX or score > _SCORE_TOLERANCE:
            return f"a {ours.label} that differs by {box:.3g} px and {score:.2g} of the score"
    return None


def measure(
    side: Side, photos: Sequence[bytes], concurrency: int, seconds: float, warm_up: float
) -> dict[str, Any]:
    """Ask one side in a closed loop; the others must be idle.

    Returns:
        The loop's summary (see `load.Outcome.summary`), with ``cpu_ms_per_image`` of the side's
        processes, ``client_cpu_ms_per_image`` of this one, and ``cores_busy`` by both.

    Raises:
        ComparisonError: It answered nothing in that time.
    """

    async def load() -> tuple[Outcome, float, float, float]:
        async with side.asking() as ask:
            # Long enough that every worker and every connection has had its turn.
            await closed_loop(ask, photos, concurrency, warm_up)
            cpu, client, start = side.cpu_s(), time.process_time(), time.perf_counter()
            outcome = await closed_loop(ask, photos, concurrency, seconds)
            took = time.perf_counter() - start
            return outcome, side.cpu_s() - cpu, time.process_time() - client, took

    side.resume()
    try:
        outcome, server_s, client_s, took = asyncio.run(load())
    finally:
        side.pause()
    summary, answered = outcome.summary(), len(outcome.latencies_s)
    if not summary["images_per_s"]:
        errors = ", ".join(f"{count} x {kind}" for kind, count in outcome.errors.items())
        raise ComparisonError(
            f"{side.name} answered nothing within {seconds:g} s at concurrency {concurrency}"
            + (f": {errors}" if errors else ": give more --seconds")
        )
    return {
        **summary,
        "cpu_ms_per_image": server_s / answered * 1e3,
        "client_cpu_ms_per_image": client_s / answered * 1e3,
        "cores_busy": (server_s + client_s) / took,
    }
