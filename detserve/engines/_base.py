"""What every engine is, whichever runtime it uses."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["DetectorEngine", "EngineError", "Float32Array", "UInt8Array"]

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]


class EngineError(RuntimeError):
    """A model cannot be loaded, or it is no detector of this project's contract."""


class DetectorEngine(Protocol):
    """What the pipeline asks of an engine."""

    input_size_wh: tuple[int, int]
    """Width and height of the model's input in pixels."""

    def infer(self, images: UInt8Array) -> Float32Array:
        """Detect on a batch.

        Args:
            images: uint8 [N, H, W, 3], RGB, of the model's input size.

        Returns:
            float32 [N, K0, 6]: x1 y1 x2 y2 in pixels of the input, score, class; by descending
            score.
        """
        ...
