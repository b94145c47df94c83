"""A budget of requests shared fairly by several streams."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Hashable

__all__ = ["Turns"]


class Turns:
    """Lets so many requests go at once, and every stream have its turn.

    A place that falls free goes to the waiting stream with the fewest requests under way, and
    among equals to the one that has waited longest. A stream that has nothing to send leaves its
    share to the others.

    Args:
        places: Requests that may be under way at once, of all the streams together.
    """

    def __init__(self, places: int) -> None:
        if places < 1:
            raise ValueError(f"places must be at least 1, got {places}")
        self._free = places
        self._under_way: Counter[Hashable] = Counter()
        self._waiting: list[tuple[Hashable, asyncio.Future[None]]] = []  # longest wait first

    async def take(self, stream: Hashable) -> None:
        """Wait for a place; give it back with `give`."""
        if self._free and not self._waiting:
            self._grant(stream)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((stream, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # granted at the same moment
                self.give(stream)
            self._waiting = [entry for entry in self._waiting if entry[1] is not turn]
            raise

    def give(self, stream: Hashable) -> None:
        """Give a place back."""
        self._free += 1
        self._under_way[stream] -= 1
        waiting = [entry for entry in self._waiting if not entry[1].done()]
        if waiting:
            chosen = min(waiting, key=lambda entry: self._under_way[entry[0]])
            waiting.remove(chosen)
            self._grant(chosen[0])
            chosen[1].set_result(None)
        self._waiting = waiting

    def _grant(self, stream: Hashable) -> None:
        self._free -= 1
        self._under_way[stream] += 1
