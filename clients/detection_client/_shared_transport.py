"""Transports that hand large images over in shared memory, around those that send them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from detection_client._errors import DetectionClientError, InvalidInputError
from detection_client._shared_memory import (
    MIN_BYTES,
    Region,
    RegionPool,
    is_lost,
    may_be_reused,
    serialised_size,
)
from detection_client._tensors import InferRequest, SharedImages

__all__ = ["AsyncSharedTransport", "SharedTransport"]

_FORGET_TIMEOUT_S = 1.0
_CLOSE_TIMEOUT_S = 3.0
_PAUSE_S = 0.05


class _Transport(Protocol):
    def infer(self, request: InferRequest, timeout: float) -> Any: ...
    def model_config(
        self, model: str, timeout: float, headers: Mapping[str, str]
    ) -> dict[str, Any]: ...
    def model_ready(self, model: str, timeout: float) -> bool: ...
    def register_memory(self, name: str, key: str, size: int, timeout: float) -> None: ...
    def unregister_memory(self, name: str, timeout: float) -> None: ...
    def close(self) -> None: ...


class _AsyncTransport(Protocol):
    async def infer(self, request: InferRequest, timeout: float) -> Any: ...
    async def model_config(
        self, model: str, timeout: float, headers: Mapping[str, str]
    ) -> dict[str, Any]: ...
    async def model_ready(self, model: str, timeout: float) -> bool: ...
    async def register_memory(self, name: str, key: str, size: int, timeout: float) -> None: ...
    async def unregister_memory(self, name: str, timeout: float) -> None: ...
    async def close(self) -> None: ...


class _Base:
    def __init__(self) -> None:
        self._pool = RegionPool()

    def _ended(self, region: Region, error: BaseException | None) -> str | None:
        """What becomes of a region after its request; a name that the server may now forget."""
        if error is None or (isinstance(error, DetectionClientError) and may_be_reused(error)):
            return self._pool.give(region)
        # The server may still read it for a request that nobody waits for any more.
        return self._pool.discard(region)


def _with_region(request: InferRequest, region: Region) -> InferRequest:
    size = serialised_size(request.images)
    return replace(request, shared=SharedImages(region.name, size))


def _refusal(error: DetectionClientError) -> DetectionClientError:
    if is_lost(error):
        return InvalidInputError(
            "shared_memory: the server cannot open this client's shared memory: it must run on the"
            f" same machine with the same /dev/shm, and as a user who may read it ({error.message})"
        )
    return error


def _in_use(error: DetectionClientError) -> bool:
    return "currently in use" in error.message


class SharedTransport(_Base):
    """Blocking calls, from any thread."""

    def __init__(self, inner: _Transport) -> None:
        super().__init__()
        self._inner = inner
        self.model_config = inner.model_config
        self.model_ready = inner.model_ready

    def infer(self, request: InferRequest, timeout: float) -> Any:
        """Send one request and wait for its result."""
        if serialised_size(request.images) < MIN_BYTES:
            return self._inner.infer(request, timeout)
        try:
            return self._infer(request, timeout)
        except DetectionClientError as error:
            if not is_lost(error):
                raise
        self._pool.clear()  # the server has been started anew, and knows none of them
        return self._infer(request, timeout)

    def _infer(self, request: InferRequest, timeout: float) -> Any:
        region, new = self._pool.take(request.images)
        failure: BaseException | None = None
        try:
            region.write(request.images)
            if new:
                self._register(region, timeout)
            return self._inner.infer(_with_region(request, region), timeout)
        except BaseException as error:
            failure = error
            raise
        finally:
            spare = self._ended(region, failure)
            if spare is not None:
                self._forget(spare)

    def _register(self, region: Region, timeout: float) -> None:
        try:
            self._inner.register_memory(region.name, region.key, region.size, timeout)
        except DetectionClientError as error:
            raise _refusal(error) from None
        finally:
            region.unlink()

    def _forget(self, name: str) -> None:
        try:
            self._inner.unregister_memory(name, _FORGET_TIMEOUT_S)
        except DetectionClientError as error:
            if _in_use(error):  # by a request that was given up
                self._pool.keep(name)

    def close(self) -> None:
        """Give the memory back, and end the connection."""
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        while names := self._pool.clear():
            for name in names:
                self._forget(name)
            if time.monotonic() > deadline:  # it goes with the server at the latest
                break
            time.sleep(_PAUSE_S)
        self._inner.close()


class AsyncSharedTransport(_Base):
    """The same with asyncio."""

    def __init__(self, inner: _AsyncTransport) -> None:
        super().__init__()
        self._inner = inner
        self.model_config = inner.model_config
        self.model_ready = inner.model_ready

    async def infer(self, request: InferRequest, timeout: float) -> Any:
        """Send one request and await its result."""
        if serialised_size(request.images) < MIN_BYTES:
            return await self._inner.infer(request, timeout)
        try:
            return await self._infer(request, timeout)
        except DetectionClientError as error:
            if not is_lost(error):
                raise
        self._pool.clear()
        return await self._infer(request, timeout)

    async def _infer(self, request: InferRequest, timeout: float) -> Any:
        region, new = self._pool.take(request.images)
        failure: BaseException | None = None
        try:
            region.write(request.images)
            if new:
                await self._register(region, timeout)
            return await self._inner.infer(_with_region(request, region), timeout)
        except BaseException as error:
            failure = error
            raise
        finally:
            spare = self._ended(region, failure)
            if spare is not None:
                await self._forget(spare)

    async def _register(self, region: Region, timeout: float) -> None:
        try:
            await self._inner.register_memory(region.name, region.key, region.size, timeout)
        except DetectionClientError as error:
            raise _refusal(error) from None
        finally:
            region.unlink()

    async def _forget(self, name: str) -> None:
        try:
            await self._inner.unregister_memory(name, _FORGET_TIMEOUT_S)
        except DetectionClientError as error:
            if _in_use(error):  # by a request that was given up
                self._pool.keep(name)

    async def close(self) -> None:
        """Give the memory back, and end the connection."""
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        while names := self._pool.clear():
            for name in names:
                await self._forget(name)
            if time.monotonic() > deadline:  # it goes with the server at the latest
                break
            await asyncio.sleep(_PAUSE_S)
        await self._inner.close()
