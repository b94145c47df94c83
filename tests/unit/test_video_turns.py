"""The request budget is shared fairly, and no place is lost."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from detection_client._turns import Turns


def test_busy_streams_get_equal_shares() -> None:
    async def work() -> Counter[str]:
        turns, served, active = Turns(3), Counter[str](), 0

        async def stream(name: str, duration: float) -> None:
            nonlocal active
            calls = []

            async def call() -> None:
                nonlocal active
                active += 1
                assert active <= 3
                await asyncio.sleep(duration)
                active -= 1
                served[name] += 1
                turns.give(name)

            while sum(served.values()) < 400:
                await turns.take(name)
                calls.append(asyncio.create_task(call()))
            await asyncio.gather(*calls)

        await asyncio.gather(*(stream(name, 0.0005) for name in "abcd"))
        return served

    served = asyncio.run(work())
    assert min(served.values()) >= 0.8 * sum(served.values()) / 4


def test_a_free_place_goes_to_the_stream_with_the_fewest_under_way() -> None:
    async def work() -> list[str]:
        turns, order = Turns(3), list[str]()
        for name in ("greedy", "greedy", "modest"):
            await turns.take(name)

        async def take(name: str) -> None:
            await turns.take(name)
            order.append(name)

        tasks = [asyncio.create_task(take(name)) for name in ("greedy", "modest", "new")]
        await asyncio.sleep(0)
        turns.give("greedy")
        turns.give("modest")
        turns.give("greedy")
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(work()) == ["new", "modest", "greedy"]


def test_a_cancelled_wait_loses_no_place() -> None:
    async def work() -> None:
        turns = Turns(1)
        await turns.take("a")
        waiting = asyncio.create_task(turns.take("b"))
        await asyncio.sleep(0)
        turns.give("a")  # granted to b, which is cancelled before it runs
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(turns.take("c"), 1)

    asyncio.run(work())
