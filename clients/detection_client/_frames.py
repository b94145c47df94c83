"""Frames on their way from a decoding thread to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

__all__ = ["Frame", "FrameBuffer"]


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """One picture of a video.

    Attributes:
        index: Its number in the stream from 0; those that were dropped are counted.
        time_s: Seconds from the stream's start: of playing for a file, of the clock for a live one.
        pixels: uint8 [H, W, 3], BGR as OpenCV decodes it.
        jpeg: The same as it is sent, where the decoding thread has encoded it.
    """

    index: int
    time_s: float
    pixels: npt.NDArray[Any]
    jpeg: bytes | None = None


class FrameBuffer:
    """A few frames between the thread that decodes and the event loop that sends.

    Args:
        size: Most frames held.
        drop_oldest: What a full buffer does with one frame more: drop the oldest of its frames
            (a live source), or have the thread wait (a file).
    """

    def __init__(self, size: int, *, drop_oldest: bool) -> None:
        self.dropped = 0
        self._size = size
        self._drop_oldest = drop_oldest
        self._frames: deque[Frame] = deque()
        self._room = threading.Condition()
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def put(self, frame: Frame) -> bool:
        """Add a frame, from the thread; False when nobody wants one any more."""
        with self._room:
            while not self._drop_oldest and len(self._frames) >= self._size and not self._ended:
                self._room.wait()
            if self._ended:
                return False
            if len(self._frames) >= self._size:
                self._frames.popleft()
                self.dropped += 1
            self._frames.append(frame)
            first = len(self._frames) == 1
        if first:  # else nobody waits
            self._wake()
        return True

    def end(self) -> None:
        """Say, from either side, that no further frame comes; those held are still given out."""
        with self._room:
            self._ended = True
            self._room.notify_all()
        self._wake()

    async def wait(self) -> bool:
        """Wait until there is a frame to pop; False when there are no more."""
        while True:
            self._news.clear()
            with self._room:
                if self._frames:
                    return True
                if self._ended:
                    return False
            await self._news.wait()

    def pop(self) -> Frame:
        """The oldest frame held; `wait` has said that there is one."""
        with self._room:
            frame = self._frames.popleft()
            self._room.notify()
        return frame

    def _wake(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody listens
            self._loop.call_soon_threadsafe(self._news.set)
