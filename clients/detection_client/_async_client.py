"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

from detection_client._address import ServerAddress
from detection_client._balancing import AsyncBalancedTransport
from detection_client._base import BaseClient, fatal_error, finish, list_images, plan_chunks
from detection_client._errors import DetectionClientError
from detection_client._flows import Flow, GetConfig, Infer, Outcome, ReadImage, Step
from detection_client._images import ImageInput, read_image
from detection_client._model_info import ModelInfo
from detection_client._shared_transport import AsyncSharedTransport
from detection_client._stream import checked_in_flight, in_order_async
from detection_client._tensors import InferRequest, Options
from detserve.detections import Detections

__all__ = ["AsyncDetectionClient"]

if TYPE_CHECKING:
    from detection_client._grpc import AsyncGrpcTransport
    from detection_client._http import AsyncHttpTransport

T = TypeVar("T")


class _Transport(Protocol):
    async def infer(self, request: InferRequest, timeout: float) -> Any: ...
    async def model_config(
        self, model: str, timeout: float, headers: Mapping[str, str]
    ) -> dict[str, Any]: ...
    async def model_ready(self, model: str, timeout: float) -> bool: ...
    async def close(self) -> None: ...


class AsyncDetectionClient(BaseClient):
    """`DetectionClient` for asyncio: the same names, to be awaited in one event loop.

    Example:
        >>> async with AsyncDetectionClient("grpc://localhost:8001") as client:  # doctest: +SKIP
        ...     found = await client.detect("photo.jpg")
    """

    _transport: _Transport | None = None

    async def detect(
        self,
        image: ImageInput,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Detections:
        """Detect the objects in one image; see `DetectionClient.detect`."""
        options = Options(score_threshold, iou_threshold, max_detections, headers or {})
        return await self._run(self._flows.detect(image, options, self._timeout_of(timeout)))

    @overload
    async def detect_batch(
        self,
        images: Iterable[ImageInput],
        *,
        score_threshold: float | None = ...,
        iou_threshold: float | None = ...,
        max_detections: int | None = ...,
        timeout: float | None = ...,
        headers: Mapping[str, str] | None = ...,
        return_exceptions: Literal[False] = ...,
    ) -> list[Detections]: ...
    @overload
    async def detect_batch(
        self,
        images: Iterable[ImageInput],
        *,
        score_threshold: float | None = ...,
        iou_threshold: float | None = ...,
        max_detections: int | None = ...,
        timeout: float | None = ...,
        headers: Mapping[str, str] | None = ...,
        return_exceptions: bool,
    ) -> list[Detections | DetectionClientError]: ...
    async def detect_batch(
        self,
        images: Iterable[ImageInput],
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        return_exceptions: bool = False,
    ) -> list[Detections] | list[Detections | DetectionClientError]:
        """Detect the objects in many images; see `DetectionClient.detect_batch`."""
        options = Options(score_threshold, iou_threshold, max_detections, headers or {})
        seconds = self._timeout_of(timeout)
        images = list_images(images)
        if not images:
            return []
        try:
            batch_size = (
                await self._run(self._flows.model_info(seconds, options.headers))
            ).max_batch_size
        except DetectionClientError:
            if not return_exceptions:
                raise
            batch_size = 1
        free = asyncio.Semaphore(self._concurrency)

        async def ask(chunk: list[tuple[int, ImageInput]]) -> list[tuple[int, Outcome]]:
            async with free:
                return await self._run(self._flows.detect_chunk(chunk, options, seconds))

        outcomes: list[tuple[int, Outcome]] = []
        calls = [asyncio.create_task(ask(chunk)) for chunk in plan_chunks(images, batch_size)]
        try:
            for call in asyncio.as_completed(calls):
                answered = await call
                outcomes += answered
                if not return_exceptions and (error := fatal_error(answered)):
                    raise error
        finally:
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        return finish(outcomes, return_exceptions=return_exceptions)

    def detect_stream(
        self,
        images: AsyncIterable[ImageInput] | Iterable[ImageInput],
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        max_in_flight: int | None = None,
        return_exceptions: bool = False,
    ) -> AsyncGenerator[Detections | DetectionClientError, None]:
        """Detect on images as they come, such as a camera's frames; results are in their order.

        The next image is taken only when one of the requests is free, so that a stream without an
        end needs no more memory than that. A result is handed on as soon as it is there, also
        while the source has no further image.

        Args:
            images: Images as `detect` takes them. Iterating must not block: use an asynchronous
                iterable where it would.
            score_threshold: As for `detect`; so are the next four.
            iou_threshold: See above.
            max_detections: See above.
            timeout: See above.
            headers: See above.
            max_in_flight: Most requests under way at once; None for the client's concurrency.
            return_exceptions: Whether an image's error is yielded in its place.

        Yields:
            One entry per image, in their order.

        Raises:
            DetectionClientError: An image's, whose ``index`` tells which; not with
                ``return_exceptions``.
        """
        options = Options(score_threshold, iou_threshold, max_detections, headers or {})
        seconds = self._timeout_of(timeout)
        return in_order_async(
            images,
            lambda image: self._run(self._flows.detect(image, options, seconds)),
            max_in_flight=checked_in_flight(max_in_flight, self._concurrency),
            return_exceptions=return_exceptions,
        )

    async def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """The model's labels and batch size; see `DetectionClient.model_info`."""
        return await self._run(self._flows.model_info(self._timeout_of(timeout)))

    async def model_config(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The model's configuration in Triton's JSON form, asked for anew.

        Unlike `model_info` it shows what has changed since; later answers are labelled by it.
        """
        return await self._run(self._flows.fresh_config(self._timeout_of(timeout)))

    async def server_ready(self, *, timeout: float | None = None) -> bool:
        """Whether the server has the model; see `DetectionClient.server_ready`."""
        try:
            return await self._open().model_ready(self.model, self._timeout_of(timeout))
        except DetectionClientError:
            return False

    async def close(self) -> None:
        """End the connections, and the calls that use them. The client is of no more use."""
        transport, self._transport, self._closed = self._transport, None, True
        if transport is not None:
            await transport.close()

    async def __aenter__(self) -> AsyncDetectionClient:
        self._check_open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def _open(self) -> _Transport:
        self._check_open()
        if self._transport is None:
            self._transport = self._make_transport()
        return self._transport

    def _make_transport(self) -> _Transport:
        transports = [self._connect_to(address) for address in self._addresses]
        if len(transports) > 1:
            return AsyncBalancedTransport(transports, [str(address) for address in self._addresses])
        return AsyncSharedTransport(transports[0]) if self._shared_memory else transports[0]

    def _connect_to(self, address: ServerAddress) -> AsyncGrpcTransport | AsyncHttpTransport:
        # Imported when needed: one protocol's libraries take a while to load.
        if address.is_grpc:
            from detection_client._grpc import AsyncGrpcTransport

            return AsyncGrpcTransport(address, self._headers, self._tls)
        from detection_client._http import AsyncHttpTransport

        return AsyncHttpTransport(address, self._headers, self._tls)

    async def _run(self, flow: Flow[T]) -> T:
        transport = self._open()
        try:
            step = next(flow)
            while True:
                try:
                    result = await _take(step, transport)
                except DetectionClientError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value


async def _take(step: Step, transport: _Transport) -> Any:
    if isinstance(step, Infer):
        return await transport.infer(step.request, step.timeout)
    if isinstance(step, ReadImage):
        if isinstance(step.image, bytes):
            return read_image(step.image)
        return await asyncio.to_thread(read_image, step.image, step.array_encoding)
    if isinstance(step, GetConfig):
        return await transport.model_config(step.model, step.timeout, step.headers)
    return await asyncio.sleep(step.seconds)
