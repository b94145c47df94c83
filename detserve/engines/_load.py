"""Choosing the engine for a model's file."""

from __future__ import annotations

import os
from collections.abc import Mapping

from detserve.engines._base import DetectorEngine, EngineError
from detserve.engines._onnxruntime import OnnxRuntimeEngine
from detserve.engines._openvino import OpenVINOEngine
from detserve.engines._tensorrt import TensorRTEngine

__all__ = ["load_engine"]


def load_engine(
    path: str | os.PathLike[str],
    backend: str = "onnxruntime",
    *,
    intra_op_threads: int = 1,
    parameters: Mapping[str, str] | None = None,
) -> DetectorEngine:
    """Load a detector of the contract with the runtime that a Triton backend is named after.

    Args:
        path: The model's file.
        backend: `onnxruntime`, `openvino` or `tensorrt`; the names are those of Triton's backends.
        intra_op_threads: Threads inside one operator; 0 takes one for every core.
        parameters: The ``parameters`` of a model's configuration, for what decides the results.

    Raises:
        EngineError: There is no such engine, or the file cannot be loaded.
    """
    parameters = parameters or {}
    if backend == "onnxruntime":
        return OnnxRuntimeEngine(path, intra_op_threads=intra_op_threads)
    if backend == "openvino":
        bf16 = parameters.get("HINT_BF16", "").upper() == "YES"
        return OpenVINOEngine(
            path, intra_op_threads=intra_op_threads, precision="bf16" if bf16 else None
        )
    if backend == "tensorrt":
        return TensorRTEngine(path)
    raise EngineError(
        f"there is no engine for the backend {backend!r}; there are onnxruntime, openvino and"
        " tensorrt"
    )
