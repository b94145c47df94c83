"""What a call does, step by step, without knowing how the steps are taken.

Every flow is a generator: it yields a step, is sent the step's result or thrown its error, and
returns the call's result. The blocking client and the asyncio one differ in how they take a step.
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from detection_client._errors import (
    AccessDeniedError,
    DetectionClientError,
    InvalidInputError,
    ServerUnavailableError,
)
from detection_client._images import ArrayEncoding, ImageInput, describe_image
from detection_client._model_info import ModelInfo
from detection_client._status import no_answer
from detection_client._tensors import InferRequest, Options, parse_outputs
from detserve.detections import Detections

__all__ = ["Flow", "Flows", "GetConfig", "Infer", "Outcome", "ReadImage", "Sleep", "Step"]

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
# Triton takes HTTP requests of 64 MB unless told otherwise.
MAX_REQUEST_BYTES = 48_000_000


@dataclass(frozen=True, slots=True)
class ReadImage:
    """Get the encoded bytes of an image; the result is bytes."""

    image: ImageInput
    array_encoding: ArrayEncoding


@dataclass(frozen=True, slots=True)
class Infer:
    """Send a request; the result is tritonclient's ``InferResult``."""

    request: InferRequest
    timeout: float


@dataclass(frozen=True, slots=True)
class GetConfig:
    """Read the model's configuration; the result is a dictionary."""

    model: str
    timeout: float
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait."""

    seconds: float


Step: TypeAlias = "ReadImage | Infer | GetConfig | Sleep"
T = TypeVar("T")
Flow: TypeAlias = Generator[Step, Any, T]
Outcome: TypeAlias = "Detections | DetectionClientError"


class _Deadline:
    """A moment after which a call may go on no more."""

    def __init__(self, url: str, timeout: float) -> None:
        self._url = url
        self._timeout = timeout
        self._end = time.monotonic() + timeout

    def remaining(self) -> float:
        """Seconds left."""
        return self._end - time.monotonic()

    def time_for_a_call(self) -> float:
        """Seconds left, if any are."""
        remaining = self.remaining()
        if remaining <= 0:
            raise no_answer(self._url, self._timeout)
        return remaining


class Flows:
    """The flows of one client.

    Args:
        url: The server, for messages.
        model: The model asked.
        retries: How many times a request is sent again.
        array_encoding: How arrays are encoded.
    """

    def __init__(self, url: str, model: str, retries: int, array_encoding: ArrayEncoding) -> None:
        self.url = url
        self.model = model
        self.retries = retries
        self.array_encoding = array_encoding
        self._info: ModelInfo | None = None

    def model_info(
        self, timeout: float, headers: Mapping[str, str] | None = None
    ) -> Flow[ModelInfo]:
        """The model's labels and batch size; asked once."""
        return (yield from self._model_info(_Deadline(self.url, timeout), headers or {}))

    def fresh_config(self, timeout: float) -> Flow[dict[str, Any]]:
        """The model's configuration as it is now; later answers get their labels from it."""
        config: dict[str, Any] = yield GetConfig(self.model, timeout, {})
        self._info = ModelInfo.from_config(self.model, config)
        return config

    def detect(self, image: ImageInput, options: Options, timeout: float) -> Flow[Detections]:
        """One image."""
        data = yield ReadImage(image, self.array_encoding)
        return (yield from self._ask((data,), options, timeout))[0]

    def detect_chunk(
        self, images: Sequence[tuple[int, ImageInput]], options: Options, timeout: float
    ) -> Flow[list[tuple[int, Outcome]]]:
        """Some images of a batch with their indices: each one's detections, or its own error.

        Where the server refuses them together, they are asked for one by one. ``timeout`` is for
        every request.
        """
        outcomes: list[tuple[int, Outcome]] = []
        group: list[tuple[int, ImageInput, bytes]] = []
        size = 0
        for index, image in images:
            try:
                data: bytes = yield ReadImage(image, self.array_encoding)
            except DetectionClientError as error:
                outcomes.append((index, _locate(error, index, image)))
                continue
            if group and size + len(data) > MAX_REQUEST_BYTES:
                outcomes += yield from self._ask_group(group, options, timeout)
                group, size = [], 0
            group.append((index, image, data))
            size += len(data)
        outcomes += yield from self._ask_group(group, options, timeout)
        return outcomes

    def _ask_group(
        self, group: Sequence[tuple[int, ImageInput, bytes]], options: Options, timeout: float
    ) -> Flow[list[tuple[int, Outcome]]]:
        if not group:
            return []
        try:
            found = yield from self._ask(tuple(data for *_, data in group), options, timeout)
        except InvalidInputError as error:
            if len(group) > 1:
                outcomes: list[tuple[int, Outcome]] = []
                for member in group:
                    outcomes += yield from self._ask_group([member], options, timeout)
                return outcomes
            failure: DetectionClientError = error
        except DetectionClientError as error:
            failure = error
        else:
            return [(index, result) for (index, *_), result in zip(group, found, strict=True)]
        return [(index, _locate(failure, index, image)) for index, image, _ in group]

    def _ask(
        self, images: tuple[bytes, ...], options: Options, timeout: float
    ) -> Flow[list[Detections]]:
        deadline = _Deadline(self.url, timeout)
        info = yield from self._model_info(deadline, options.headers)
        request = InferRequest(self.model, images, options)
        attempt = 0
        while True:
            try:
                result = yield Infer(request, deadline.time_for_a_call())
            except ServerUnavailableError as error:
                yield from self._pause(attempt, deadline, error)
                attempt += 1
            else:
                return parse_outputs(result, len(images), info.labels)

    def _model_info(self, deadline: _Deadline, headers: Mapping[str, str]) -> Flow[ModelInfo]:
        attempt = 0
        while self._info is None:
            try:
                config = yield GetConfig(self.model, deadline.time_for_a_call(), headers)
            except AccessDeniedError:  # a server may offer inference alone
                self._info = ModelInfo(self.model)
            except ServerUnavailableError as error:
                yield from self._pause(attempt, deadline, error)
                attempt += 1
            else:
                self._info = ModelInfo.from_config(self.model, config)
        return self._info

    def _pause(
        self, attempt: int, deadline: _Deadline, error: ServerUnavailableError
    ) -> Flow[None]:
        """Wait before the next attempt, or give up with the error of this one."""
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1.0)
        if attempt >= self.retries or pause >= deadline.remaining():
            raise error
        yield Sleep(pause)


def _locate(error: DetectionClientError, index: int, image: ImageInput) -> DetectionClientError:
    """The same error, telling which image it is about."""
    name = describe_image(image)
    message = error.message
    described = message if name in message else f"{name}: {message}"
    located = type(error)(f"image {index}: {described}")
    located.index = index
    located.__cause__ = error.__cause__
    return located
