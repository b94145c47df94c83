"""Requests over HTTP with asyncio, and the same for threads; tritonclient does the work.

The blocking calls run the asyncio ones on an event loop in a thread of their own. Triton's own
blocking HTTP client is not taken: it is bound to the thread that made it, leaves four file
descriptors and a thread behind for every thread that used one, and its timeouts are for each
read and write rather than for the call.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import ssl
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from detection_client._address import ServerAddress
from detection_client._errors import (
    DeadlineExceededError,
    DetectionClientError,
    ServerUnavailableError,
)
from detection_client._status import cannot_connect, error_from_status, no_answer
from detection_client._tensors import InferRequest, build_inputs
from detection_client._tls import TlsFiles

__all__ = ["AsyncHttpTransport", "HttpTransport"]

T = TypeVar("T")
_MICROSECONDS = 1_000_000
_GRACE_S = 1.0
_STOP_TIMEOUT_S = 5.0


class AsyncHttpTransport:
    """Calls with asyncio, from one event loop."""

    def __init__(self, address: ServerAddress, headers: Mapping[str, str], tls: TlsFiles) -> None:
        self._url = str(address)
        self._headers = dict(headers)
        context = tls.context() if address.uses_tls else None
        self._client = triton_aio.InferenceServerClient(
            address.authority,
            ssl=address.uses_tls,
            ssl_context=context if context is not None else True,
            conn_timeout=None,  # every call has a deadline of its own
            conn_limit=0,
        )

    @asynccontextmanager
    async def _errors(self, timeout: float) -> AsyncIterator[None]:
        start = time.monotonic()
        try:
            yield
        except InferenceServerException as error:
            raise error_from_status(
                error.status(),
                error.message(),
                url=self._url,
                timeout=timeout,
                elapsed=time.monotonic() - start,
            ) from None
        except TimeoutError:
            raise no_answer(self._url, timeout) from None
        except aiohttp.ClientConnectorError as error:
            raise cannot_connect(self._url, _reason(error.os_error)) from None
        except aiohttp.ClientConnectionError as error:
            reason = str(error) or type(error).__name__
            raise ServerUnavailableError(f"{self._url}: {reason}") from None
        except (aiohttp.ClientError, ValueError):  # ValueError: JSON that is none
            raise ServerUnavailableError(
                f"{self._url} does not answer in Triton's HTTP: is it another port?"
            ) from None

    async def infer(self, request: InferRequest, timeout: float) -> Any:
        """Send one request and await its result."""
        async with self._errors(timeout):
            call = self._client.infer(
                request.model,
                build_inputs(triton_aio.InferInput, request),
                headers={**self._headers, **request.options.headers},  # the callee adds to them
                # Where the model's queue policy heeds it, Triton drops what waited this long.
                timeout=int(timeout * _MICROSECONDS),
            )
            return await asyncio.wait_for(call, timeout)

    async def model_config(
        self, model: str, timeout: float, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        """The model's configuration, in Triton's JSON form."""
        async with self._errors(timeout):
            call = self._client.get_model_config(model, headers={**self._headers, **headers})
            config: dict[str, Any] = await asyncio.wait_for(call, timeout)
        return config

    async def model_ready(self, model: str, timeout: float) -> bool:
        """Whether the server says that the model is ready."""
        async with self._errors(timeout):
            call = self._client.is_model_ready(model, headers=dict(self._headers))
            return bool(await asyncio.wait_for(call, timeout))

    async def register_memory(self, name: str, key: str, size: int, timeout: float) -> None:
        """Let the server map a region of shared memory."""
        async with self._errors(timeout):
            call = self._client.register_system_shared_memory(
                name, key, size, headers=dict(self._headers)
            )
            await asyncio.wait_for(call, timeout)

    async def unregister_memory(self, name: str, timeout: float) -> None:
        """Let the server forget a region."""
        async with self._errors(timeout):
            call = self._client.unregister_system_shared_memory(name, headers=dict(self._headers))
            await asyncio.wait_for(call, timeout)

    async def close(self) -> None:
        """End the connections."""
        await self._client.close()


class _LoopThread:
    """An event loop in a thread of its own, and the transport that lives there."""

    def __init__(self, arguments: tuple[ServerAddress, Mapping[str, str], TlsFiles]) -> None:
        self.pid = os.getpid()
        self.transport: AsyncHttpTransport | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="detection-client", daemon=True)
        self._thread.start()
        try:
            self.transport = self.submit(_make(arguments)).result()
        except BaseException:
            self.stop()
            raise

    def submit(self, call: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def stop(self) -> None:
        """End the calls under way, the connections and the thread."""
        if self.pid != os.getpid() or self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:  # where a collector may run this
            self._thread.join(_STOP_TIMEOUT_S)

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._end_all())
        self._loop.close()

    async def _end_all(self) -> None:
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        if self.transport is not None:
            await self.transport.close()


class HttpTransport:
    """Blocking calls, from any thread."""

    def __init__(self, address: ServerAddress, headers: Mapping[str, str], tls: TlsFiles) -> None:
        self._arguments = (address, headers, tls)
        self._url = str(address)
        self._lock = threading.Lock()
        self._thread: _LoopThread | None = None

    def infer(self, request: InferRequest, timeout: float) -> Any:
        """Send one request and wait for its result."""
        return self._call(lambda transport: transport.infer(request, timeout), timeout)

    def model_config(
        self, model: str, timeout: float, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        """The model's configuration, in Triton's JSON form."""
        return self._call(
            lambda transport: transport.model_config(model, timeout, headers), timeout
        )

    def model_ready(self, model: str, timeout: float) -> bool:
        """Whether the server says that the model is ready."""
        return self._call(lambda transport: transport.model_ready(model, timeout), timeout)

    def register_memory(self, name: str, key: str, size: int, timeout: float) -> None:
        """Let the server map a region of shared memory."""
        self._call(lambda transport: transport.register_memory(name, key, size, timeout), timeout)

    def unregister_memory(self, name: str, timeout: float) -> None:
        """Let the server forget a region."""
        self._call(lambda transport: transport.unregister_memory(name, timeout), timeout)

    def close(self) -> None:
        """End the calls under way, the connections and the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()

    def _call(
        self, method: Callable[[AsyncHttpTransport], Coroutine[Any, Any, T]], timeout: float
    ) -> T:
        thread = self._started()
        assert thread.transport is not None
        call = method(thread.transport)
        try:
            future = thread.submit(call)
        except RuntimeError:  # the loop was closed a moment ago
            call.close()
            raise DetectionClientError("the client was closed") from None
        try:
            return future.result(timeout + _GRACE_S)
        except concurrent.futures.CancelledError:
            raise DetectionClientError("the client was closed") from None
        except DeadlineExceededError:
            raise
        except TimeoutError:  # the loop itself is stuck
            raise no_answer(self._url, timeout) from None
        finally:
            future.cancel()  # the caller was interrupted: nobody waits for the answer

    def _started(self) -> _LoopThread:
        thread = self._thread
        if thread is None or thread.pid != os.getpid():  # a fork has the object, not the thread
            with self._lock:
                thread = self._thread
                if thread is None or thread.pid != os.getpid():
                    self._thread = thread = _LoopThread(self._arguments)
                    weakref.finalize(self, thread.stop)
        return thread


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return f"no TLS ({error.reason})"
    # asyncio puts "Connect call failed" in the place of the system's own words.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)


async def _make(arguments: tuple[ServerAddress, Mapping[str, str], TlsFiles]) -> AsyncHttpTransport:
    return AsyncHttpTransport(*arguments)
