"""Streams: order, bounds and errors, with requests that a test answers itself."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from detection_client import (
    AsyncDetectionClient,
    DetectionClient,
    Detections,
    InvalidInputError,
    ServerUnavailableError,
)
from detection_client._stream import in_order, in_order_async


class Server:
    """Answers after a random while; the answer's labels are the image."""

    def __init__(self) -> None:
        self.under_way = self.most = self.asked = 0
        self._random = random.Random(1)

    def _begin(self) -> float:
        self.asked += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return self._random.uniform(0, 0.004)

    def _end(self, image: Any) -> Detections:
        self.under_way -= 1
        if image == b"bad":
            raise InvalidInputError("a bad image")
        if image == b"lost":
            raise ServerUnavailableError("nobody there")
        return Detections.empty((image.decode(),))

    async def ask(self, image: Any) -> Detections:
        await asyncio.sleep(self._begin())
        return self._end(image)

    def ask_blocking(self, image: Any) -> Detections:
        time.sleep(self._begin())
        return self._end(image)


def collect_async(server: Server, images: Any, **options: Any) -> list[Any]:
    async def collect() -> list[Any]:
        return [one async for one in in_order_async(images, server.ask, **options)]

    return asyncio.run(collect())


def collect(server: Server, images: Any, **options: Any) -> list[Any]:
    return list(in_order(images, server.ask_blocking, **options))


BOTH = pytest.mark.parametrize("run", [collect_async, collect])
Run = Callable[..., list[Any]]


@BOTH
@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_results_come_in_order(run: Run, count: int) -> None:
    server = Server()
    images = [str(number).encode() for number in range(count)]
    results = run(server, images, max_in_flight=4, return_exceptions=False)
    assert [found.labels[0].encode() for found in results] == images
    assert server.most <= 4


@BOTH
def test_an_error_takes_its_place(run: Run) -> None:
    images = [b"a", b"bad", b"b", b"lost", b"c"]
    results = run(Server(), images, max_in_flight=2, return_exceptions=True)
    kinds = [type(result) for result in results]
    assert kinds == [Detections, InvalidInputError, Detections, ServerUnavailableError, Detections]
    assert (results[1].index, results[3].index) == (1, 3)


@BOTH
def test_an_error_ends_the_stream(run: Run) -> None:
    server = Server()
    images = [b"a", b"b", b"bad", *[b"c"] * 100]
    with pytest.raises(InvalidInputError, match="a bad image") as caught:
        run(server, images, max_in_flight=2, return_exceptions=False)
    assert caught.value.index == 2
    assert server.asked < 20


def counted(taken: list[int]) -> Iterator[bytes]:
    while True:
        taken.append(1)
        yield b"a"


def test_a_stream_without_end_is_read_as_its_results_are() -> None:
    taken: list[int] = []
    stream = in_order(
        counted(taken), Server().ask_blocking, max_in_flight=3, return_exceptions=False
    )
    for _ in range(5):
        next(stream)
    stream.close()
    assert len(taken) <= 5 + 3
    assert not [one for one in threading.enumerate() if one.name.startswith("detect")]


def run_async(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 30))


def test_the_same_with_asyncio() -> None:
    async def work() -> None:
        taken: list[int] = []
        server, before = Server(), asyncio.all_tasks()
        stream = in_order_async(
            counted(taken), server.ask, max_in_flight=3, return_exceptions=False
        )
        for _ in range(5):
            await anext(stream)
        await stream.aclose()
        assert len(taken) <= 5 + 3 + 1
        assert asyncio.all_tasks() == before

    run_async(work)


def test_a_result_does_not_wait_for_the_next_image() -> None:
    async def work() -> None:
        more = asyncio.Event()

        async def camera() -> AsyncIterator[bytes]:
            yield b"a"
            await more.wait()
            yield b"b"

        stream = in_order_async(camera(), Server().ask, max_in_flight=4, return_exceptions=False)
        assert (await anext(stream)).labels == ("a",)  # type: ignore[union-attr]
        more.set()
        assert (await anext(stream)).labels == ("b",)  # type: ignore[union-attr]
        with contextlib.suppress(StopAsyncIteration):
            await anext(stream)
            pytest.fail("a result too many")

    run_async(work)


def test_bad_options_are_named_at_once() -> None:
    with DetectionClient("grpc://localhost:1") as client:
        with pytest.raises(InvalidInputError, match="max_in_flight must be at least 1, got 0"):
            client.detect_stream([], max_in_flight=0)
        with pytest.raises(InvalidInputError, match="score_threshold"):
            client.detect_stream([], score_threshold=2)
    with pytest.raises(InvalidInputError, match="max_in_flight"):
        AsyncDetectionClient("grpc://localhost:1").detect_stream([], max_in_flight=-1)
