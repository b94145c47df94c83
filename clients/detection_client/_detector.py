"""What the command asks: a server, or the pipeline in this process."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from detection_client._images import ImageInput
from detection_client._model_info import ModelInfo
from detserve.detections import Detections

__all__ = ["Detector"]


class Detector(Protocol):
    """What `AsyncDetectionClient` and `LocalClient` have in common."""

    async def detect(
        self,
        image: ImageInput,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> Detections:
        """Detect the objects in one image."""

    async def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """The model's labels."""

    async def __aenter__(self) -> object: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
