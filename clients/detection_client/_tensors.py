"""Images and options -> the model's input tensors, and its output tensors -> detections.

The tensors are the same in gRPC and in HTTP; only the classes that hold them differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from detection_client._errors import InvalidInputError, ServerError
from detserve.detections import Detections

__all__ = ["InferRequest", "Options", "build_inputs", "checked_headers", "parse_outputs"]

_HEADER_NAME = re.compile(r"[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Options:
    """What a request may override; None leaves the server's default.

    Attributes:
        score_threshold: Lowest score to report, in [0, 1].
        iou_threshold: Overlap of two boxes of a class above which the lower one goes, in [0, 1].
        max_detections: Most detections per image, at least 1.
        headers: Headers of this request alone, over those of the client.
    """

    score_threshold: float | None = None
    iou_threshold: float | None = None
    max_detections: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("score_threshold", "iou_threshold"):
            value = getattr(self, name)
            if value is None:
                continue
            if not _is_number(value) or not 0 <= value <= 1:
                raise InvalidInputError(f"{name} must be a number from 0 to 1, not {value!r}")
        object.__setattr__(self, "headers", checked_headers(self.headers))
        most = self.max_detections
        if most is not None and not (
            _is_number(most) and math.isfinite(most) and most == int(most) and 1 <= most < 2**31
        ):
            raise InvalidInputError(f"max_detections must be an integer from 1, not {most!r}")


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with their names in lower case, which are the same to HTTP and to gRPC.

    Raises:
        InvalidInputError: A name is none, or a value cannot be sent.
    """
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise InvalidInputError(
                f"{name!r} is no header's name: letters, digits, '-', '_' and '.' make one"
            )
        if not (value.isascii() and value.isprintable()):
            raise InvalidInputError(f"header {name!r}: {value!r} is not printable ASCII text")
    return {name.lower(): value for name, value in headers.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class SharedImages:
    """Where a request's images lie in shared memory: a region that the server knows, and bytes."""

    region: str
    size: int


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One request: encoded images, and the options for all of them."""

    model: str
    images: tuple[bytes, ...]
    options: Options
    shared: SharedImages | None = None


class _InputFactory(Protocol):
    def __call__(self, name: str, shape: list[int], datatype: str, /) -> Any: ...


class _Result(Protocol):
    def as_numpy(self, name: str, /) -> npt.NDArray[Any] | None: ...


def build_inputs(make_input: _InputFactory, request: InferRequest) -> list[Any]:
    """The input tensors of a request, of a protocol's ``InferInput`` class."""
    shape = [len(request.images), 1]
    options = request.options
    tensors: list[tuple[str, str, npt.NDArray[Any]]] = []
    inputs = []
    if request.shared is not None:
        tensor = make_input("IMAGE", shape, "BYTES")
        tensor.set_shared_memory(request.shared.region, request.shared.size)
        inputs.append(tensor)
    else:
        images = np.empty(shape, np.object_)
        for index, data in enumerate(request.images):
            images[index, 0] = data
        tensors.append(("IMAGE", "BYTES", images))
    if options.score_threshold is not None:
        thresholds = np.full(shape, options.score_threshold, np.float32)
        tensors.append(("SCORE_THRESHOLD", "FP32", thresholds))
    if options.iou_threshold is not None:
        thresholds = np.full(shape, options.iou_threshold, np.float32)
        tensors.append(("IOU_THRESHOLD", "FP32", thresholds))
    if options.max_detections is not None:
        tensors.append(
            ("MAX_DETECTIONS", "INT32", np.full(shape, options.max_detections, np.int32))
        )
    for name, datatype, values in tensors:
        tensor = make_input(name, shape, datatype)
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return inputs


def parse_outputs(result: _Result, count: int, labels: tuple[str, ...]) -> list[Detections]:
    """The detections of each of ``count`` images.

    Raises:
        ServerError: The answer lacks an output, or has one of an unexpected shape.
    """
    outputs = []
    for name in ("num_detections", "detection_boxes", "detection_scores", "detection_classes"):
        values = result.as_numpy(name)
        if values is None or len(values) != count:
            raise ServerError(
                f"the model's answer has no usable output {name!r}: is it a detection model?"
            )
        outputs.append(values)
    counts, boxes, scores, classes = outputs
    # Copies: the outputs are read-only views that would keep the whole answer alive.
    return [
        Detections(
            boxes[index, :found].astype(np.float32),
            scores[index, :found].astype(np.float32),
            classes[index, :found].astype(np.int32),
            labels,
        )
        for index, found in enumerate(counts.reshape(count).tolist())
    ]
