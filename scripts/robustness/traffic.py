"""The load under which things are broken, and what became of each request."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import aiohttp

from detection_client import (
    AsyncDetectionClient,
    DetectionClientError,
    QueueFullError,
    ServerUnavailableError,
)
from load import Ask, open_loop
from robustness.service import Service

__all__ = ["BARE", "GATEWAY", "RETRYING", "SHARES", "Request", "Traffic"]

BARE = "gRPC, no retries"
RETRYING = "gRPC, retries"
GATEWAY = "REST"
SHARES = {BARE: 0.4, RETRYING: 0.3, GATEWAY: 0.3}
TIMEOUT_S = 30.0  # the client library's default
RETRIES = 50  # within the timeout, which comes first
FOR_EVER_S = 86_400.0
LOST_PROCESS = "has lost its process"  # the client, where Triton says that a stub is not healthy
ENDED_CALL = "has ended the call"  # the client, where a server that ends has cancelled it
ABANDONED = "scheduler for model has stopped"  # Triton, of an ensemble's later step when it ends


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        by: Who sent it: one of `SHARES`.
        sent: When, by the monotonic clock.
        answered: When its answer or error came.
        error: The kind of its error; "" if it was answered well.
        message: What the error said.
        refused: Whether the error told that the request was not begun and may be sent again. Of
            clients that repeat requests only where a queue was full: that they do not repeat.
        unhealthy: Whether Triton said that the process it gave the request to is dead.
    """

    by: str
    sent: float
    answered: float
    error: str = ""
    message: str = ""
    refused: bool = False
    unhealthy: bool = False


class Traffic:
    """An open loop of requests in a thread of its own, from `start` to `stop`.

    Attributes:
        requests: Those that have ended so far.
        rate: Requests a second, all senders together.

    Args:
        service: What to ask.
        photos: What to send.
        rate: Requests a second, all senders together.
    """

    def __init__(self, service: Service, photos: Sequence[bytes], rate: float) -> None:
        self._service = service
        self._photos = photos
        self.rate = rate
        self.requests: list[Request] = []
        self._pending: dict[int, float] = {}
        self._numbers = itertools.count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._offer(),), name="traffic")

    def start(self) -> None:
        """Start sending."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Stop sending, and wait for the answers."""
        assert self._loop is not None
        assert self._ending is not None
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether it goes on sending."""
        return self._thread.is_alive()

    def between(self, start: float, end: float) -> list[Request]:
        """The requests that ended in a time."""
        return [one for one in list(self.requests) if start <= one.answered < end]

    def oldest_pending_s(self) -> float:
        """How long the oldest request has been under way."""
        moments = list(self._pending.values())
        return time.monotonic() - min(moments) if moments else 0.0

    async def _offer(self) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        grpc = self._service.grpc_url
        async with (
            AsyncDetectionClient(grpc, timeout=TIMEOUT_S, retries=0) as bare,
            AsyncDetectionClient(grpc, timeout=TIMEOUT_S, retries=RETRIES) as retrying,
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            ) as session,
        ):
            asks = {
                BARE: self._recorded(BARE, _client_call(bare, retries=False)),
                RETRYING: self._recorded(RETRYING, _client_call(retrying, retries=True)),
                GATEWAY: self._recorded(
                    GATEWAY, _rest_call(session, f"{self._service.gateway_url}/detect")
                ),
            }
            loops = [
                asyncio.create_task(
                    open_loop(ask, self._photos, self.rate * SHARES[by], FOR_EVER_S, seed)
                )
                for seed, (by, ask) in enumerate(asks.items())
            ]
            self._ready.set()
            ended = asyncio.create_task(self._ending.wait())
            # A loop that ends by itself has failed.
            await asyncio.wait([*loops, ended], return_when=asyncio.FIRST_COMPLETED)
            for task in (*loops, ended):
                task.cancel()
            results = await asyncio.gather(*loops, return_exceptions=True)
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*rest, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def _recorded(self, by: str, call: Callable[[bytes], Awaitable[_Failure | None]]) -> Ask:
        async def ask(photo: bytes) -> str:
            number, sent = next(self._numbers), time.monotonic()
            self._pending[number] = sent
            try:
                failure = await call(photo)
            finally:
                del self._pending[number]
            now = time.monotonic()
            if failure is None:
                self.requests.append(Request(by, sent, now))
                return ""
            self.requests.append(
                Request(
                    *(by, sent, now, failure.error, failure.message, failure.refused),
                    unhealthy=LOST_PROCESS in failure.message,
                )
            )
            return failure.error

        return ask


@dataclass(frozen=True, slots=True)
class _Failure:
    error: str
    message: str
    refused: bool


def _client_call(
    client: AsyncDetectionClient, *, retries: bool
) -> Callable[[bytes], Awaitable[_Failure | None]]:
    async def call(photo: bytes) -> _Failure | None:
        try:
            await client.detect(photo)
        except DetectionClientError as error:
            refused = isinstance(error, QueueFullError)
            if isinstance(error, ServerUnavailableError) and not retries:
                begun = (LOST_PROCESS, ENDED_CALL, ABANDONED)
                refused = not any(text in error.message for text in begun)
            return _Failure(type(error).__name__, error.message, refused)
        return None

    return call


def _rest_call(
    session: aiohttp.ClientSession, url: str
) -> Callable[[bytes], Awaitable[_Failure | None]]:
    headers = {"Content-Type": "image/jpeg"}

    async def call(photo: bytes) -> _Failure | None:
        try:
            async with session.post(url, data=photo, headers=headers) as response:
                body = await response.read()
        except aiohttp.ClientConnectorError as error:
            return _Failure("no connection", str(error), refused=True)
        except (aiohttp.ClientError, TimeoutError) as error:
            return _Failure(type(error).__name__, str(error), refused=False)
        if response.status == 200:
            return None
        refused = response.status in (429, 503) and "Retry-After" in response.headers
        try:
            detail = json.loads(body).get("detail", "")
        except (ValueError, AttributeError):
            detail = body[:200].decode(errors="replace")
        return _Failure(f"HTTP {response.status}", detail, refused)

    return call
