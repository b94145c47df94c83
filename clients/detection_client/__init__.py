"""Ask a DetServe server for detections, over gRPC or HTTP, blocking or with asyncio."""

from typing import TYPE_CHECKING, Any

from detection_client._async_client import AsyncDetectionClient
from detection_client._client import DetectionClient
from detection_client._drawing import draw
from detection_client._errors import (
    AccessDeniedError,
    DeadlineExceededError,
    DetectionClientError,
    InvalidInputError,
    ModelNotFoundError,
    QueueFullError,
    ServerError,
    ServerUnavailableError,
)
from detection_client._images import encode_array
from detection_client._model_info import ModelInfo
from detection_client._report import ImageReport, render_table
from detserve.detections import Detection, Detections

if TYPE_CHECKING:
    from detection_client._local import LocalClient

__all__ = [
    "AccessDeniedError",
    "AsyncDetectionClient",
    "DeadlineExceededError",
    "Detection",
    "DetectionClient",
    "DetectionClientError",
    "Detections",
    "ImageReport",
    "InvalidInputError",
    "LocalClient",
    "ModelInfo",
    "ModelNotFoundError",
    "QueueFullError",
    "ServerError",
    "ServerUnavailableError",
    "draw",
    "encode_array",
    "render_table",
]


def __getattr__(name: str) -> Any:
    if name == "LocalClient":  # the pipeline and its engines are loaded only when asked for
        from detection_client._local import LocalClient

        return LocalClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
