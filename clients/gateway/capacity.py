"""How much work goes to the server at once, and what is refused before it drowns.

A request is admitted while the wait that it must expect is within a bound; what is over that is
refused at once, before its body is read. The expected wait is the number of images before it
times the time between two answers, which is measured while the server is busy.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.problems import Problem

__all__ = ["Capacity"]

_SMOOTHING = 0.1


class Capacity:
    """Slots for images at the server, with a line before them that is kept short.

    Args:
        slots: Most images at the server at once.
        max_wait: Longest expected wait for a slot, in seconds.
        max_open: Most requests under way, those still being received included.
    """

    def __init__(self, slots: int, max_wait: float, max_open: int) -> None:
        self._slots = slots
        self._max_wait = max_wait
        self._max_open = max_open
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._busy_since = 0.0  # of the last answer while all slots were taken; 0: not all are
        self.in_flight = 0
        self.open = 0
        self.shed = 0
        self.interval = 0.0  # seconds between two answers

    @property
    def expected_wait(self) -> float:
        """Seconds that an image admitted now would wait for a slot."""
        if self.in_flight < self._slots:
            return 0.0
        return (len(self._waiting) + 1) * self.interval

    def check(self) -> None:
        """See that there is room for a request.

        Raises:
            Problem: 503, with the time after which to try again.
        """
        if self.open >= self._max_open or self.expected_wait > self._max_wait or self._line_full():
            self.shed += 1
            raise Problem(503, "more requests than can be served: try again later", retry_after=1)

    def _line_full(self) -> bool:
        # Nothing has been measured before the first answers: the line is bounded all the same.
        return self.interval == 0.0 and len(self._waiting) >= 4 * self._slots

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """The time of one request, from its first byte on."""
        self.check()
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """The time of one image at the server; waits for its turn."""
        if self.in_flight < self._slots:
            self.in_flight += 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._release()
                else:
                    self._waiting.remove(turn)
                raise
        if self.in_flight >= self._slots and not self._busy_since:
            self._busy_since = time.monotonic()
        try:
            yield
        finally:
            self._measure()
            self._release()

    def _measure(self) -> None:
        if not self._busy_since:
            return
        now = time.monotonic()
        passed = now - self._busy_since
        self.interval += (passed - self.interval) * (_SMOOTHING if self.interval else 1.0)
        self._busy_since = now

    def _release(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # the slot passes on
                return
        self.in_flight -= 1
        self._busy_since = 0.0
