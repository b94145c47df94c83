"""The detector families, and how each is folded into the pipeline's contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import onnx

from families import ssd
from families.graph import DetectorImportError

__all__ = ["FAMILIES", "DetectorImportError", "Family"]


class Family(NamedTuple):
    """How the models of one architecture are folded, and how their images are resized."""

    fold: Callable[[onnx.ModelProto], onnx.ModelProto]
    resize: str


FAMILIES = {"ssd": Family(ssd.fold, resize="stretch")}
