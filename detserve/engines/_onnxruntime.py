"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from detserve.engines._base import EngineError, Float32Array, UInt8Array

__all__ = [
    "ORT_ERRORS",
    "ExecutionMode",
    "GraphOptimization",
    "OnnxRuntimeEngine",
    "create_session",
]

GraphOptimization = Literal["disable", "basic", "extended", "all"]
ExecutionMode = Literal["sequential", "parallel"]

_GRAPH_OPTIMIZATION = {
    "disable": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_EXECUTION_MODE = {
    "sequential": onnxruntime.ExecutionMode.ORT_SEQUENTIAL,
    "parallel": onnxruntime.ExecutionMode.ORT_PARALLEL,
}

# ONNX Runtime's exceptions have no base of their own.
ORT_ERRORS = (
    ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf, ort_errors.NoModel, ort_errors.NoSuchFile,
    ort_errors.NotImplemented, ort_errors.RuntimeException,
)  # fmt: skip


def create_session(
    path: str | os.PathLike[str],
    *,
    intra_op_threads: int = 1,
    inter_op_threads: int = 1,
    execution_mode: ExecutionMode = "sequential",
    graph_optimization: GraphOptimization = "all",
) -> onnxruntime.InferenceSession:
    """Load an ONNX file for the CPU.

    Args:
        path: The file.
        intra_op_threads: Threads inside one operator; 0 takes one for every core.
        inter_op_threads: Threads across operators, in the parallel mode.
        execution_mode: Whether independent operators may run at once.
        graph_optimization: Highest level of ONNX Runtime's graph rewrites.

    Raises:
        EngineError: The file is missing or ONNX Runtime refuses it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = inter_op_threads
    options.execution_mode = _EXECUTION_MODE[execution_mode]
    options.graph_optimization_level = _GRAPH_OPTIMIZATION[graph_optimization]
    # Waiting threads sleep: other processes of the pipeline need the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not Path(path).is_file():
        raise EngineError(f"there is no model file {os.fspath(path)}")
    try:
        return onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except ORT_ERRORS as error:
        raise EngineError(f"ONNX Runtime cannot load {os.fspath(path)}: {error}") from error


class OnnxRuntimeEngine:
    """A detector of the contract on the CPU, by ONNX Runtime."""

    def __init__(self, path: str | os.PathLike[str], *, intra_op_threads: int = 1) -> None:
        """Load ``images`` UINT8 [N, H, W, 3] -> ``candidates`` FP32 [N, K0, 6].

        Args:
            path: The ONNX file.
            intra_op_threads: Threads inside one operator; 0 takes one for every core.

        Raises:
            EngineError: The file cannot be loaded, or its tensors are others.
        """
        self._session = create_session(path, intra_op_threads=intra_op_threads)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        found = [f"{t.name} {t.type} {t.shape}" for t in (*inputs, *outputs)]
        if (
            [(t.name, t.type, len(t.shape)) for t in inputs] != [("images", "tensor(uint8)", 4)]
            or [(t.name, t.type, len(t.shape)) for t in outputs]
            != [("candidates", "tensor(float)", 3)]
            or inputs[0].shape[3] != 3
            or outputs[0].shape[2] != 6
        ):
            raise EngineError(
                f"{os.fspath(path)} has the tensors {'; '.join(found)}; a detector has"
                " images tensor(uint8) [N, H, W, 3]; candidates tensor(float) [N, K0, 6]"
            )
        _, height, width, _ = inputs[0].shape
        if not isinstance(height, int) or not isinstance(width, int):
            raise EngineError(f"{os.fspath(path)} has no fixed input size: {found[0]}")
        self.input_size_wh = (width, height)

    def infer(self, images: UInt8Array) -> Float32Array:
        """See `DetectorEngine.infer`."""
        (candidates,) = self._session.run(["candidates"], {"images": images})
        return np.asarray(candidates, np.float32)
