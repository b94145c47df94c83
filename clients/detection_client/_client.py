"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

from detection_client._address import ServerAddress
from detection_client._balancing import BalancedTransport
from detection_client._base import BaseClient, fatal_error, finish, list_images, plan_chunks
from detection_client._errors import DetectionClientError
from detection_client._flows import Flow, GetConfig, Infer, Outcome, ReadImage, Step
from detection_client._images import ImageInput, read_image
from detection_client._model_info import ModelInfo
from detection_client._shared_transport import SharedTransport
from detection_client._stream import checked_in_flight, in_order
from detection_client._tensors import InferRequest, Options
from detserve.detections import Detections

__all__ = ["DetectionClient"]

if TYPE_CHECKING:
    from detection_client._grpc import GrpcTransport
    from detection_client._http import HttpTransport

T = TypeVar("T")


class _Transport(Protocol):
    def infer(self, request: InferRequest, timeout: float) -> Any: ...
    def model_config(
        self, model: str, timeout: float, headers: Mapping[str, str]
    ) -> dict[str, Any]: ...
    def model_ready(self, model: str, timeout: float) -> bool: ...
    def close(self) -> None: ...


class DetectionClient(BaseClient):
    """Asks a Triton server for detections, over gRPC or HTTP; threads may share one.

    It connects at its first call. A request is sent again only when the server could not be
    reached, had not loaded the model or had lost the model's process (`ServerUnavailableError`):
    up to ``retries`` times, after random pauses that double, and within the timeout. That is safe
    even where the server was lost in mid-request, for detection has no side effects. Bad input, a
    full queue, a passed deadline and a failure of the server's own are raised at once.

    With several servers a request goes to the one with the fewest of this client's under way. One
    that is unavailable is set aside for a growing pause, and the request goes to the next at once;
    ``retries`` counts how often all of them are gone through again.

    Example:
        >>> with DetectionClient("grpc://localhost:8001") as client:  # doctest: +SKIP
        ...     for found in client.detect("photo.jpg", score_threshold=0.5):
        ...         print(found.label, found.score, found.box_xyxy)
    """

    _transport: _Transport | None = None

    def detect(
        self,
        image: ImageInput,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Detections:
        """Detect the objects in one image.

        Args:
            image: A path, an encoded image (JPEG, PNG, WebP, BMP, TIFF), or an array: uint8
                [H, W, 3] RGB, [H, W] grey or [H, W, 4] RGBA.
            score_threshold: Lowest score to report, in [0, 1]; None for the server's default.
            iou_threshold: Overlap above which the lower of two boxes of a class is dropped, in
                [0, 1]; None for the server's default.
            max_detections: Most detections to report; None for the server's default.
            timeout: Seconds that the call may take; None for the client's.
            headers: Headers of this call (gRPC: metadata), over the client's own of the same name.

        Returns:
            The detections by descending score, with boxes in pixels of the image as given.

        Raises:
            InvalidInputError: The image or an option is not usable.
            DetectionClientError: One of its other kinds: the server cannot be reached, is busy,
                is too slow, or failed.
        """
        options = Options(score_threshold, iou_threshold, max_detections, headers or {})
        return self._run(self._flows.detect(image, options, self._timeout_of(timeout)))

    @overload
    def detect_batch(
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
    def detect_batch(
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
    def detect_batch(
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
        """Detect the objects in many images, of any sizes.

        Requests hold up to the model's ``max_batch_size`` images, and ``concurrency`` of them are
        under way at once. Images that are refused together are sent again one by one, so that a
        bad image costs no other its answer.

        Args:
            images: Images as `detect` takes them. Files are read when their turn comes.
            score_threshold: As for `detect`; so are the next two.
            iou_threshold: See above.
            max_detections: See above.
            timeout: Seconds that each request may take.
            headers: Headers of every request of this call.
            return_exceptions: Whether an image's error takes its place in the list.

        Returns:
            One entry per image, in their order.

        Raises:
            InvalidInputError: Of the first bad image, after all were asked; its ``index`` tells
                which. Not with ``return_exceptions``, except for a bad option.
            DetectionClientError: Anything else that failed, at once; not with
                ``return_exceptions``.
        """
        options = Options(score_threshold, iou_threshold, max_detections, headers or {})
        seconds = self._timeout_of(timeout)
        images = list_images(images)
        if not images:
            return []
        try:
            batch_size = self._run(self._flows.model_info(seconds, options.headers)).max_batch_size
        except DetectionClientError:
            if not return_exceptions:
                raise
            batch_size = 1
        chunks = plan_chunks(images, batch_size)
        outcomes: list[tuple[int, Outcome]] = []
        with ThreadPoolExecutor(min(self._concurrency, len(chunks))) as pool:
            calls = [
                pool.submit(self._run, self._flows.detect_chunk(chunk, options, seconds))
                for chunk in chunks
            ]
            try:
                for call in as_completed(calls):
                    outcomes += call.result()
                    if not return_exceptions and fatal_error(call.result()):
                        # Several may have failed by now: the first of them is told.
                        done = [one for one in calls if one.done() and not one.cancelled()]
                        raise next(filter(None, (fatal_error(one.result()) for one in done)))
            finally:
                for call in calls:
                    call.cancel()
        return finish(outcomes, return_exceptions=return_exceptions)

    def detect_stream(
        self,
        images: Iterable[ImageInput],
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
        max_in_flight: int | None = None,
        return_exceptions: bool = False,
    ) -> Generator[Detections | DetectionClientError, None, None]:
        """Detect on images as they come, of which there may be no end; results are in their order.

        Images are taken one by one as requests are free, here and not in another thread. Arguments
        and errors are those of `AsyncDetectionClient.detect_stream`.
        """
        options = Options(score_threshold, iou_threshold, max_detections, headers or {})
        seconds = self._timeout_of(timeout)
        return in_order(
            images,
            lambda image: self._run(self._flows.detect(image, options, seconds)),
            max_in_flight=checked_in_flight(max_in_flight, self._concurrency),
            return_exceptions=return_exceptions,
        )

    def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """The model's labels and batch size, which are asked once and kept.

        Raises:
            DetectionClientError: The server cannot be reached or has no such model.
        """
        return self._run(self._flows.model_info(self._timeout_of(timeout)))

    def server_ready(self, *, timeout: float | None = None) -> bool:
        """Whether the server can be reached and says that it has the model loaded.

        Triton says so too while a model's process is dead: only an answer to `detect` proves
        that detection works.
        """
        try:
            return self._open().model_ready(self.model, self._timeout_of(timeout))
        except DetectionClientError:
            return False

    def close(self) -> None:
        """End the connections, and the calls that use them. The client is of no more use."""
        with self._lock:
            transport, self._transport, self._closed = self._transport, None, True
        if transport is not None:
            transport.close()

    def __enter__(self) -> DetectionClient:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> _Transport:
        transport = self._transport
        if transport is None:
            with self._lock:
                self._check_open()
                if self._transport is None:
                    self._transport = self._make_transport()
                transport = self._transport
        return transport

    def _make_transport(self) -> _Transport:
        transports = [self._connect_to(address) for address in self._addresses]
        if len(transports) > 1:
            return BalancedTransport(transports, [str(address) for address in self._addresses])
        return SharedTransport(transports[0]) if self._shared_memory else transports[0]

    def _connect_to(self, address: ServerAddress) -> GrpcTransport | HttpTransport:
        # Imported when needed: one protocol's libraries take a while to load.
        if address.is_grpc:
            from detection_client._grpc import GrpcTransport

            return GrpcTransport(address, self._headers, self._tls)
        from detection_client._http import HttpTransport

        return HttpTransport(address, self._headers, self._tls)

    def _run(self, flow: Flow[T]) -> T:
        transport = self._open()
        try:
            step = next(flow)
            while True:
                try:
                    result = _take(step, transport)
                except DetectionClientError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value


def _take(step: Step, transport: _Transport) -> Any:
    if isinstance(step, Infer):
        return transport.infer(step.request, step.timeout)
    if isinstance(step, ReadImage):
        return read_image(step.image, step.array_encoding)
    if isinstance(step, GetConfig):
        return transport.model_config(step.model, step.timeout, step.headers)
    return time.sleep(step.seconds)
