"""Who may ask, and how often."""

from __future__ import annotations

import hashlib
import hmac
import time
from pathlib import Path

from limits import RateLimitItem, parse
from limits.aio.storage import MemoryStorage, RedisStorage, Storage
from limits.aio.strategies import MovingWindowRateLimiter
from redis.exceptions import RedisError
from starlette.requests import HTTPConnection

from gateway.problems import Problem

__all__ = ["ApiKeys", "RateLimit", "read_key_hashes"]

_HASH_LENGTH = 64
_KEY_ID_LENGTH = 8


def read_key_hashes(source: Path | None) -> tuple[str, ...]:
    """The hashes of the keys that are accepted; none where everybody may ask.

    Args:
        source: A file with a hash a line, or the hashes themselves, separated by commas.

    Raises:
        ValueError: It has no hashes, or something else as well.
    """
    if source is None:
        return ()
    given = str(source)
    try:
        inline = "," in given or len(given) == _HASH_LENGTH
        text = given if inline and not _is_file(source) else source.read_text()
    except (OSError, UnicodeDecodeError):
        raise ValueError("the API keys' file cannot be read") from None
    lines = (line.partition("#")[0].strip().lower() for line in text.replace(",", "\n").split("\n"))
    hashes = tuple(line for line in lines if line)
    if not hashes or any(
        len(entry) != _HASH_LENGTH or set(entry) - set("0123456789abcdef") for entry in hashes
    ):
        raise ValueError(
            "API keys are given as a file of SHA-256 hashes in hex, one a line:"
            " printf %s KEY | sha256sum"
        )
    return hashes


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # longer than a name may be
        return False


class ApiKeys:
    """The keys that are accepted, by their hashes."""

    def __init__(self, hashes: tuple[str, ...]) -> None:
        self._hashes = hashes

    @property
    def required(self) -> bool:
        """Whether a key is asked for at all."""
        return bool(self._hashes)

    def check(self, connection: HTTPConnection, key: str = "") -> str:
        """Who asks: the hash of the key, or the client's address where no keys are asked for.

        The access log gets the first digits of the hash.

        Args:
            connection: The request, or the socket.
            key: Where it does not come in a header.

        Raises:
            Problem: 401, there is no key, or another.
        """
        if not self._hashes:
            return connection.client.host if connection.client else "unknown"
        digest = self._hash_of(key or key_of(connection))
        connection.state.key_id = digest[:_KEY_ID_LENGTH]
        return digest

    def _hash_of(self, key: str) -> str:
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        # All are compared, so that time tells nothing.
        if not sum(hmac.compare_digest(digest, known) for known in self._hashes):
            raise Problem(
                401,
                "send a valid API key as X-API-Key, or as Authorization: Bearer",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return digest


def key_of(connection: HTTPConnection) -> str:
    """The key that a request carries, or nothing."""
    if key := connection.headers.get("x-api-key"):
        return key
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


class RateLimit:
    """How often each client may ask.

    Args:
        rate: Such as ``"20/second"``; empty for no limit.
        redis_url: Where several gateways count together; empty to count in this process.

    Raises:
        ValueError: The rate is none.
    """

    def __init__(self, rate: str, redis_url: str) -> None:
        self._item: RateLimitItem | None = parse(rate) if rate else None
        self._here = MovingWindowRateLimiter(MemoryStorage())
        self._shared: MovingWindowRateLimiter | None = None
        self._pause_until = 0.0
        if rate and redis_url:
            storage: Storage = RedisStorage(
                f"async+{redis_url}",
                implementation="redispy",
                socket_timeout=0.1,
                socket_connect_timeout=0.1,
            )
            self._shared = MovingWindowRateLimiter(storage)

    async def check(self, client: str) -> None:
        """Count one request.

        Raises:
            Problem: 429, with the time after which to try again.
        """
        if self._item is None:
            return
        limiter = self._here
        if self._shared is not None and time.monotonic() >= self._pause_until:
            try:
                await self._count(self._shared, self._item, client)
            except (RedisError, OSError, TimeoutError):
                self._pause_until = time.monotonic() + 0.5  # each process counts alone until then
            else:
                return
        await self._count(limiter, self._item, client)

    async def _count(
        self, limiter: MovingWindowRateLimiter, item: RateLimitItem, client: str
    ) -> None:
        if await limiter.hit(item, client):
            return
        window = await limiter.get_window_stats(item, client)
        raise Problem(
            429,
            f"more requests than {item}: slow down",
            retry_after=window.reset_time - time.time(),
        )
