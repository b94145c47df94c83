"""Transports that share requests out to several servers, around one transport for each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Any, Protocol, TypeVar

from detection_client._errors import DetectionClientError
from detection_client._servers import Servers
from detection_client._tensors import InferRequest

__all__ = ["AsyncBalancedTransport", "BalancedTransport"]

T = TypeVar("T")


class _Transport(Protocol):
    def infer(self, request: InferRequest, timeout: float) -> Any: ...
    def model_config(
        self, model: str, timeout: float, headers: Mapping[str, str]
    ) -> dict[str, Any]: ...
    def model_ready(self, model: str, timeout: float) -> bool: ...
    def close(self) -> None: ...


class _AsyncTransport(Protocol):
    async def infer(self, request: InferRequest, timeout: float) -> Any: ...
    async def model_config(
        self, model: str, timeout: float, headers: Mapping[str, str]
    ) -> dict[str, Any]: ...
    async def model_ready(self, model: str, timeout: float) -> bool: ...
    async def close(self) -> None: ...


class BalancedTransport:
    """Blocking calls, from any thread.

    Args:
        transports: One for each server.
        urls: The servers' addresses, in the same order.
    """

    def __init__(self, transports: Sequence[_Transport], urls: Sequence[str]) -> None:
        self._transports = transports
        self._servers = Servers(urls)

    def infer(self, request: InferRequest, timeout: float) -> Any:
        """Send one request to a server, or to the next where one fails."""
        return self._call(lambda transport, left: transport.infer(request, left), timeout)

    def model_config(
        self, model: str, timeout: float, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        """The model's configuration, of one of the servers."""
        return self._call(
            lambda transport, left: transport.model_config(model, left, headers), timeout
        )

    def model_ready(self, model: str, timeout: float) -> bool:
        """Whether one of the servers says that the model is ready."""
        share = timeout / len(self._transports)
        return any(_is_ready(transport, model, share) for transport in self._transports)

    def close(self) -> None:
        """End the connections to all of them."""
        with ExitStack() as stack:
            for transport in self._transports:
                stack.callback(transport.close)

    def _call(self, ask: Callable[[_Transport, float], T], timeout: float) -> T:
        call = self._servers.call(timeout)
        while True:
            with call.attempt() as attempt:
                return ask(self._transports[attempt.index], attempt.timeout)


class AsyncBalancedTransport:
    """The same with asyncio."""

    def __init__(self, transports: Sequence[_AsyncTransport], urls: Sequence[str]) -> None:
        self._transports = transports
        self._servers = Servers(urls)

    async def infer(self, request: InferRequest, timeout: float) -> Any:
        """Send one request to a server, or to the next where one fails."""
        return await self._call(lambda transport, left: transport.infer(request, left), timeout)

    async def model_config(
        self, model: str, timeout: float, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        """The model's configuration, of one of the servers."""
        return await self._call(
            lambda transport, left: transport.model_config(model, left, headers), timeout
        )

    async def model_ready(self, model: str, timeout: float) -> bool:
        """Whether one of the servers says that the model is ready."""
        answers = await asyncio.gather(
            *(transport.model_ready(model, timeout) for transport in self._transports),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, DetectionClientError):
                raise answer
        return True in answers

    async def close(self) -> None:
        """End the connections to all of them."""
        async with AsyncExitStack() as stack:
            for transport in self._transports:
                stack.push_async_callback(transport.close)

    async def _call(
        self, ask: Callable[[_AsyncTransport, float], Awaitable[T]], timeout: float
    ) -> T:
        call = self._servers.call(timeout)
        while True:
            with call.attempt() as attempt:
                return await ask(self._transports[attempt.index], attempt.timeout)


def _is_ready(transport: _Transport, model: str, timeout: float) -> bool:
    try:
        return transport.model_ready(model, timeout)
    except DetectionClientError:
        return False
