"""Images one after another, with several requests under way, and their results in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
)
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from detection_client._errors import DetectionClientError, InvalidInputError
from detection_client._flows import Outcome
from detection_client._images import ImageInput
from detserve.detections import Detections

__all__ = ["checked_in_flight", "in_order", "in_order_async"]


def checked_in_flight(max_in_flight: int | None, default: int) -> int:
    """How many requests a stream has under way at once.

    Raises:
        InvalidInputError: Fewer than one.
    """
    if max_in_flight is None:
        return default
    if max_in_flight < 1:
        raise InvalidInputError(f"max_in_flight must be at least 1, got {max_in_flight}")
    return max_in_flight


async def in_order_async(
    images: AsyncIterable[ImageInput] | Iterable[ImageInput],
    ask: Callable[[ImageInput], Awaitable[Detections]],
    *,
    max_in_flight: int,
    return_exceptions: bool,
) -> AsyncGenerator[Outcome, None]:
    """Each image's detections, in their order; the next image is taken when a place is free.

    Raises:
        DetectionClientError: An image's, in its place and with its ``index``; with
            ``return_exceptions`` it is yielded instead, and the stream goes on.
    """
    feed = _iterate(images)
    pending: deque[asyncio.Future[Detections]] = deque()
    coming: asyncio.Task[ImageInput | None] | None = None
    more, index = True, 0
    try:
        while True:
            if more and coming is None and len(pending) < max_in_flight:
                coming = asyncio.create_task(_next(feed))
            first = [pending[0]] if pending else []
            waited: list[asyncio.Future[Any]] = [*first, *([] if coming is None else [coming])]
            if not waited:
                return
            # The first result is handed on also while a slow source has no further image.
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if coming is not None and coming.done():
                image, coming = coming.result(), None
                if image is None:
                    more = False
                else:
                    pending.append(asyncio.ensure_future(ask(image)))
            while pending and pending[0].done():
                yield _outcome(pending.popleft().result, index, return_exceptions=return_exceptions)
                index += 1
    finally:
        left: list[asyncio.Future[Any]] = [*pending, *([] if coming is None else [coming])]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


def in_order(
    images: Iterable[ImageInput],
    ask: Callable[[ImageInput], Detections],
    *,
    max_in_flight: int,
    return_exceptions: bool,
) -> Generator[Outcome, None, None]:
    """The same, blocking: requests are under way in threads."""
    pending: deque[Future[Detections]] = deque()
    index = 0
    with ThreadPoolExecutor(max_in_flight, thread_name_prefix="detect") as pool:
        try:
            for image in images:
                pending.append(pool.submit(ask, image))
                while pending and (len(pending) >= max_in_flight or pending[0].done()):
                    result = pending.popleft().result
                    yield _outcome(result, index, return_exceptions=return_exceptions)
                    index += 1
            while pending:
                result = pending.popleft().result
                yield _outcome(result, index, return_exceptions=return_exceptions)
                index += 1
        finally:
            for future in pending:
                future.cancel()


def _outcome(result: Callable[[], Detections], index: int, *, return_exceptions: bool) -> Outcome:
    try:
        return result()
    except DetectionClientError as error:
        error.index = index
        if not return_exceptions:
            raise
        return error


async def _iterate(
    images: AsyncIterable[ImageInput] | Iterable[ImageInput],
) -> AsyncIterator[ImageInput]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image


async def _next(feed: AsyncIterator[ImageInput]) -> ImageInput | None:
    return await anext(feed, None)
