"""OpenVINO on the CPU."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from detserve.engines._base import EngineError, Float32Array, UInt8Array

if TYPE_CHECKING:
    import openvino

__all__ = ["InferencePrecision", "OpenVINOEngine", "compile_model"]

InferencePrecision = Literal["f32", "bf16"]


def compile_model(
    path: str | os.PathLike[str],
    *,
    threads: int = 1,
    precision: InferencePrecision | None = None,
    streams: str = "1",
    hint: str = "LATENCY",
) -> openvino.CompiledModel:
    """Load an ONNX or OpenVINO IR file for the CPU.

    Args:
        path: The file.
        threads: Threads that compute; 0 takes one for every core.
        precision: `f32`, `bf16` (which CPUs with AVX-512 emulate slowly if they lack it), or None
            for OpenVINO's choice: bfloat16 where the CPU has instructions for it, else float32.
        streams: Requests that run at once, which share the threads: a number, `AUTO` or `NUMA`.
        hint: What OpenVINO chooses its other settings for: `LATENCY` or `THROUGHPUT`.

    Raises:
        EngineError: The package is missing, or the file is, or OpenVINO refuses it.
    """
    try:
        import openvino  # half a second, for those alone who use it
    except ModuleNotFoundError as error:
        raise EngineError(
            "the engine 'openvino' needs the package openvino: pip install 'detserve[openvino]'"
        ) from error
    if not Path(path).is_file():
        raise EngineError(f"there is no model file {os.fspath(path)}")
    properties: dict[str, str | int | bool] = {
        "INFERENCE_NUM_THREADS": threads or len(os.sched_getaffinity(0)),
        "NUM_STREAMS": streams,
        "PERFORMANCE_HINT": hint,
        # Several processes serve one model: pinned threads would all sit on the first cores.
        "ENABLE_CPU_PINNING": False,
    }
    if precision is not None:
        properties["INFERENCE_PRECISION_HINT"] = precision
    try:
        return openvino.Core().compile_model(os.fspath(path), "CPU", properties)
    except RuntimeError as error:  # OpenVINO has no exceptions of its own
        raise EngineError(f"OpenVINO cannot load {os.fspath(path)}: {error}") from error


class OpenVINOEngine:
    """A detector of the contract on the CPU, by OpenVINO."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        intra_op_threads: int = 1,
        precision: InferencePrecision | None = None,
    ) -> None:
        """Load ``images`` UINT8 [N, H, W, 3] -> ``candidates`` FP32 [N, K0, 6].

        Args:
            path: The ONNX or OpenVINO IR file.
            intra_op_threads: Threads that compute; 0 takes one for every core.
            precision: See `compile_model`.

        Raises:
            EngineError: The file cannot be loaded, or its tensors are others.
        """
        self._model = compile_model(path, threads=intra_op_threads, precision=precision)
        tensors = [
            (port.any_name, port.element_type.get_type_name(), port.partial_shape)
            for port in (*self._model.inputs, *self._model.outputs)
        ]
        match [(name, kind, len(shape)) for name, kind, shape in tensors]:
            case [("images", "u8", 4), ("candidates", "f32", 3)] if (
                tensors[0][2][3] == 3 and tensors[1][2][2] == 6
            ):
                _, height, width, _ = tensors[0][2]
            case _:
                found = "; ".join(f"{name} {kind} {shape}" for name, kind, shape in tensors)
                raise EngineError(
                    f"{os.fspath(path)} has the tensors {found}; a detector has"
                    " images u8 [N,H,W,3]; candidates f32 [N,K0,6]"
                )
        if height.is_dynamic or width.is_dynamic:
            raise EngineError(f"{os.fspath(path)} has no fixed input size: {tensors[0][2]}")
        self.input_size_wh = (width.get_length(), height.get_length())
        self._local = threading.local()

    def infer(self, images: UInt8Array) -> Float32Array:
        """See `DetectorEngine.infer`."""
        # A request is one thread's at a time, and dear to make.
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._model.create_infer_request()
        outputs = request.infer([np.ascontiguousarray(images)], share_inputs=True)
        return np.asarray(outputs["candidates"], np.float32)
