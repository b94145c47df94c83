"""Choosing the engine for a model's file."""

from __future__ import annotations

import os

from detserve.engines._base import DetectorEngine, EngineError
from detserve.engines._onnxruntime import OnnxRuntimeEngine

__all__ = ["load_engine"]


def load_engine(
    path: str | os.PathLike[str], backend: str = "onnxruntime", *, intra_op_threads: int = 1
) -> DetectorEngine:
    """Load a detector of the contract with the runtime that a Triton backend is named after.

    Args:
        path: The model's file.
        backend: `onnxruntime`; the names are those of Triton's backends.
        intra_op_threads: Threads inside one operator; 0 takes one for every core.

    Raises:
        EngineError: There is no such engine, or the file cannot be loaded.
    """
    if backend == "onnxruntime":
        return OnnxRuntimeEngine(path, intra_op_threads=intra_op_threads)
    raise EngineError(f"there is no engine for the backend {backend!r}; there is onnxruntime")
