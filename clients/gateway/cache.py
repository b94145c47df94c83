"""Results in Redis, which may be gone at any time without a request failing for it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.options import RequestOptions

__all__ = ["Cache", "cache_key"]

Computed: TypeAlias = "tuple[dict[str, Any], float, bool]"

_TIMEOUT_S = 0.1  # of one call to Redis, which answers within a millisecond
_PAUSE_S = 0.5  # in which a Redis that failed is not asked
_LOCK_S = 2.0  # longest that others wait for the one that computes
_POLL_S = 0.01
_FAILURES = (RedisError, OSError, TimeoutError)


def cache_key(image: bytes, options: RequestOptions, fingerprint: str) -> str:
    """The name of a result: the image, what was asked of it, and of which model."""
    digest = hashlib.sha256(image)
    asked = (options.score_threshold, options.iou_threshold, options.max_detections)
    digest.update(f"{asked}{fingerprint}".encode())
    return f"detserve:result:{digest.hexdigest()}"


class _Shared:
    """A computation that several requests wait for; it ends when none does any more."""

    def __init__(self, work: Awaitable[Computed]) -> None:
        self.task = asyncio.ensure_future(work)
        self.waiting = 0

    async def wait(self) -> Computed:
        self.waiting += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self.waiting -= 1
            if self.waiting == 0 and not self.task.done():
                self.task.cancel()


class Cache:
    """A result cache in Redis, with one computation of a result at a time.

    Args:
        url: ``redis://host:6379/0``.
        ttl: Seconds that a result lives.
    """

    def __init__(self, url: str, ttl: float) -> None:
        self._redis = redis.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            max_connections=64,
        )
        self._ttl_ms = max(1, int(ttl * 1000))
        self._shared: dict[str, _Shared] = {}
        self._closed_until = 0.0
        self.hits = 0
        self.misses = 0
        self.errors = 0

    async def get(self, key: str, compute: Callable[[], Awaitable[Computed]]) -> Computed:
        """A result, from Redis or computed, and whether it was in Redis.

        Args:
            key: The result's name.
            compute: Gives the result, the seconds it took, and whether it may be kept.

        Returns:
            The result, the seconds that computing took, and whether it was not computed for
            this request.
        """
        shared = self._shared.get(key)
        joined = shared is not None and not shared.task.done()
        if shared is None or not joined:
            shared = self._shared[key] = _Shared(self._look_or_compute(key, compute))
            made = shared
            shared.task.add_done_callback(lambda _: self._forget(key, made))
        body, seconds, cached = await shared.wait()
        if cached or joined:
            self.hits += 1
            return body, 0.0, True
        self.misses += 1
        return body, seconds, False

    async def ping(self) -> bool:
        """Whether Redis answers."""
        return await self._try(self._redis.ping, always=True) is not None

    async def close(self) -> None:
        """End the connections."""
        await self._redis.aclose()

    def _forget(self, key: str, shared: _Shared) -> None:
        if self._shared.get(key) is shared:
            del self._shared[key]
        if not shared.task.cancelled():
            shared.task.exception()  # everybody that waited has gone: nobody else takes it

    async def _look_or_compute(
        self, key: str, compute: Callable[[], Awaitable[Computed]]
    ) -> Computed:
        if (found := await self._read(key)) is not None:
            return found, 0.0, True
        token = secrets.token_hex(8)
        lock = f"{key}:lock"
        locked = await self._lock(lock, token)
        if locked is False:  # another gateway computes it
            end = time.monotonic() + _LOCK_S
            while time.monotonic() < end:
                await asyncio.sleep(_POLL_S)
                if (found := await self._read(key)) is not None:
                    return found, 0.0, True
                if self._paused() or (locked := await self._lock(lock, token)) is not False:
                    break
        try:
            body, seconds, keep = await compute()
            if keep:
                text = json.dumps(body)
                await self._try(lambda: self._redis.set(key, text, px=self._ttl_ms))
        finally:
            if locked:
                # In a task: the request may have been cancelled, the lock is to go all the same.
                release = asyncio.ensure_future(self._try(lambda: self._redis.delete(lock)))
                await asyncio.shield(release)
        return body, seconds, False

    async def _read(self, key: str) -> dict[str, Any] | None:
        text = await self._try(lambda: self._redis.get(key))
        if text is None:
            return None
        try:
            found = json.loads(text)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    async def _lock(self, name: str, token: str) -> bool | None:
        """Whether the lock is ours; None where Redis is gone."""

        async def call() -> bool:
            return bool(await self._redis.set(name, token, nx=True, px=int(_LOCK_S * 1000)))

        taken: bool | None = await self._try(call)
        return taken

    def _paused(self) -> bool:
        return time.monotonic() < self._closed_until

    async def _try(self, call: Callable[[], Awaitable[Any]], *, always: bool = False) -> Any:
        if self._paused() and not always:
            return None
        try:
            return await call()
        except _FAILURES:
            self.errors += 1
            self._closed_until = time.monotonic() + _PAUSE_S
            return None
