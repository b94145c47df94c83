"""Requests over gRPC, blocking and with asyncio; tritonclient does the work."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from detection_client._address import ServerAddress
from detection_client._status import error_from_status
from detection_client._tensors import InferRequest, build_inputs
from detection_client._tls import TlsFiles

__all__ = ["AsyncGrpcTransport", "GrpcTransport"]

_MICROSECONDS = 1_000_000
# A server that has come back is found again within a second: gRPC's default waits up to two
# minutes between attempts. (min_reconnect_backoff_ms is another thing: it limits the attempt.)
_ROUND_ROBIN = '{"loadBalancingConfig": [{"round_robin": {}}]}'
_CHANNEL_ARGUMENTS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class _GrpcBase:
    def __init__(
        self, client_class: Any, address: ServerAddress, headers: Mapping[str, str], tls: TlsFiles
    ) -> None:
        arguments: list[tuple[str, int | str]] = list(_CHANNEL_ARGUMENTS)
        if address.is_local:  # http_proxy in the environment is not meant for this machine
            arguments.append(("grpc.enable_http_proxy", 0))
        else:  # a name may have many addresses, as that of a headless service
            arguments.append(("grpc.service_config", _ROUND_ROBIN))
        self._client = client_class(
            address.authority,
            ssl=address.uses_tls,
            **tls.grpc_arguments(),
            channel_args=arguments,
        )
        self._url = str(address)
        self._headers = dict(headers)

    @contextmanager
    def _errors(self, timeout: float) -> Iterator[None]:
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

    def _infer_arguments(self, request: InferRequest, timeout: float) -> dict[str, Any]:
        return {
            "model_name": request.model,
            "inputs": build_inputs(triton.InferInput, request),
            "headers": {**self._headers, **request.options.headers},
            "client_timeout": timeout,
            # Where the model's queue policy heeds it, Triton drops what has waited this long.
            "timeout": int(timeout * _MICROSECONDS),
        }

    def _config_arguments(
        self, model: str, timeout: float, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        return {
            "model_name": model,
            "headers": {**self._headers, **headers},
            "as_json": True,
            "client_timeout": timeout,
        }

    def _ready_arguments(self, model: str, timeout: float) -> dict[str, Any]:
        return {"model_name": model, "headers": self._headers, "client_timeout": timeout}


class GrpcTransport(_GrpcBase):
    """Blocking calls, from any thread."""

    def __init__(self, address: ServerAddress, headers: Mapping[str, str], tls: TlsFiles) -> None:
        super().__init__(triton.InferenceServerClient, address, headers, tls)

    def infer(self, request: InferRequest, timeout: float) -> Any:
        """Send one request and wait for its result."""
        with self._errors(timeout):
            return self._client.infer(**self._infer_arguments(request, timeout))

    def model_config(
        self, model: str, timeout: float, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        """The model's configuration, in Triton's JSON form."""
        with self._errors(timeout):
            answer = self._client.get_model_config(
                **self._config_arguments(model, timeout, headers)
            )
        config: dict[str, Any] = answer["config"]
        return config

    def model_ready(self, model: str, timeout: float) -> bool:
        """Whether the server says that the model is ready."""
        with self._errors(timeout):
            return bool(self._client.is_model_ready(**self._ready_arguments(model, timeout)))

    def register_memory(self, name: str, key: str, size: int, timeout: float) -> None:
        """Let the server map a region of shared memory."""
        with self._errors(timeout):
            self._client.register_system_shared_memory(
                name, key, size, headers=self._headers, client_timeout=timeout
            )

    def unregister_memory(self, name: str, timeout: float) -> None:
        """Let the server forget a region."""
        with self._errors(timeout):
            self._client.unregister_system_shared_memory(
                name, headers=self._headers, client_timeout=timeout
            )

    def close(self) -> None:
        """End the connection, and the calls that use it."""
        self._client.close()


class AsyncGrpcTransport(_GrpcBase):
    """The same calls with asyncio, from one event loop."""

    def __init__(self, address: ServerAddress, headers: Mapping[str, str], tls: TlsFiles) -> None:
        super().__init__(triton_aio.InferenceServerClient, address, headers, tls)

    async def infer(self, request: InferRequest, timeout: float) -> Any:
        """Send one request and await its result."""
        with self._errors(timeout):
            return await self._client.infer(**self._infer_arguments(request, timeout))

    async def model_config(
        self, model: str, timeout: float, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        """The model's configuration, in Triton's JSON form."""
        with self._errors(timeout):
            answer = await self._client.get_model_config(
                **self._config_arguments(model, timeout, headers)
            )
        config: dict[str, Any] = answer["config"]
        return config

    async def model_ready(self, model: str, timeout: float) -> bool:
        """Whether the server says that the model is ready."""
        with self._errors(timeout):
            ready = await self._client.is_model_ready(**self._ready_arguments(model, timeout))
        return bool(ready)

    async def register_memory(self, name: str, key: str, size: int, timeout: float) -> None:
        """Let the server map a region of shared memory."""
        with self._errors(timeout):
            await self._client.register_system_shared_memory(
                name, key, size, headers=self._headers, client_timeout=timeout
            )

    async def unregister_memory(self, name: str, timeout: float) -> None:
        """Let the server forget a region."""
        with self._errors(timeout):
            await self._client.unregister_system_shared_memory(
                name, headers=self._headers, client_timeout=timeout
            )

    async def close(self) -> None:
        """End the connection, and the calls that use it."""
        await self._client.close()
