"""TensorRT on an NVIDIA GPU."""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from detserve.engines._base import EngineError, Float32Array, UInt8Array
from detserve.engines._cuda import Buffers, Cuda
from detserve.engines._plan_header import read_plan_header
from detserve.engines._tensorrt_log import shared_log

__all__ = ["TensorRTEngine"]


class TensorRTEngine:
    """A detector of the contract on a GPU, by TensorRT: the twin of `OnnxRuntimeEngine`.

    Any number of threads may call `infer`; as many run at once as there are execution contexts,
    each with a stream, pinned host memory and device memory of its own.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        contexts: int = 2,
        device: int = 0,
        version_compatible: bool = False,
    ) -> None:
        """Load ``images`` UINT8 [N, H, W, 3] -> ``candidates`` FP32 [N, K0, 6].

        Args:
            path: The plan, as scripts/build_plan.py writes it.
            contexts: Batches that run at once at the most. Two keep copies and kernels busy.
            device: Index of the GPU, in CUDA's order.
            version_compatible: Accept a plan of another TensorRT, if it was built to be
                compatible. Such a plan brings host code of its own that is then run: load none
                that you would not execute.

        Raises:
            EngineError: TensorRT or a GPU is missing, the plan is for another TensorRT or another
                GPU, or its tensors are not a detector's.
        """
        if contexts < 1:
            raise EngineError(f"contexts must be at least 1, got {contexts}")
        self._path = os.fspath(path)
        header = read_plan_header(path)
        if header.module != "tensorrt":
            raise EngineError(
                f"{self._path} was built by {header}, whose plans TensorRT cannot load: build it"
                " with scripts/build_plan.py --module tensorrt on the GPU that will serve it"
            )
        try:
            trt: Any = importlib.import_module("tensorrt")
        except ImportError as error:
            raise EngineError(
                f"TensorRT's Python module cannot be imported ({error}); NVIDIA's container"
                " nvcr.io/nvidia/tensorrt has it"
            ) from error
        if not header.built_by(trt.__version__) and not version_compatible:
            raise EngineError(
                f"{self._path} was built by {header}, but this is TensorRT {trt.__version__}, and"
                " a plan runs in the version that built it: build it anew here with"
                " scripts/build_plan.py, or build it --version-compatible and load it so"
            )
        self._cuda = Cuda(device)
        self._cuda.use()
        # A context needs its engine, and that its runtime and the logger: all are kept alive.
        self._log = shared_log(trt)
        self._runtime = trt.Runtime(self._log)
        if version_compatible:
            self._runtime.engine_host_code_allowed = True
        self._log.take_errors()  # what another object left
        self._engine = self._runtime.deserialize_cuda_engine(Path(path).read_bytes())
        if self._engine is None:
            raise EngineError(
                f"TensorRT cannot load {self._path}, which {header} built: {self._reason()}."
                " A plan runs on the kind of GPU that it was built on, here"
                f" {self._cuda.gpu().name}"
            )
        self.input_size_wh, self._candidates = self._check_tensors(trt)
        smallest, _, largest = self._engine.get_tensor_profile_shape("images", 0)
        self._min_batch, self.max_batch_size = int(smallest[0]), int(largest[0])
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        slots: list[_Slot] = []
        self.close = weakref.finalize(self, _close, self._cuda, slots)
        """Give the GPU's memory back; done too when the engine is collected."""
        for _ in range(contexts):
            slots.append(_Slot(self._cuda))
            slots[-1].prepare(self._engine, self._image_bytes(), self._row_bytes())
            self._free.put(slots[-1])

    def infer(self, images: UInt8Array) -> Float32Array:
        """See `DetectorEngine.infer`; batches beyond the plan's greatest run in parts.

        Raises:
            EngineError: The images are of another size or type, or the GPU fails.
        """
        width, height = self.input_size_wh
        if images.dtype != np.uint8 or images.shape[1:] != (height, width, 3):
            raise EngineError(
                f"{self._path} takes uint8 [N, {height}, {width}, 3], got {images.dtype}"
                f" {list(images.shape)}"
            )
        if not self.close.alive:
            raise EngineError(f"{self._path}: the engine is closed")
        candidates = np.empty((len(images), self._candidates, 6), np.float32)
        if not len(images):
            return candidates
        self._cuda.use()  # the device is a thread's own setting
        with self._slot() as slot:
            for start in range(0, len(images), self.max_batch_size):
                part = slice(start, start + self.max_batch_size)
                self._run(slot, images[part], candidates[part])
        return candidates

    def _run(self, slot: _Slot, images: UInt8Array, candidates: Float32Array) -> None:
        count = len(images)
        # Below the profile's least batch, what an earlier one left pads it.
        batch = max(count, self._min_batch)
        slot.images.bytes[: images.nbytes].reshape(images.shape)[:] = images
        self._cuda.upload(slot.images, batch * self._image_bytes(), slot.stream)
        if not slot.context.set_input_shape("images", (batch, *images.shape[1:])):
            raise EngineError(f"TensorRT refuses a batch of {batch}: {self._reason()}")
        if not slot.context.execute_async_v3(slot.stream):
            raise EngineError(f"TensorRT cannot run {self._path}: {self._reason()}")
        self._cuda.download(slot.candidates, count * self._row_bytes(), slot.stream)
        self._cuda.call("cudaStreamSynchronize", slot.stream)
        found = slot.candidates.bytes[: candidates.nbytes].view(np.float32)
        candidates[:] = found.reshape(candidates.shape)

    def _reason(self) -> str:
        return "; ".join(self._log.take_errors()) or "it gives no reason"

    @contextlib.contextmanager
    def _slot(self) -> Iterator[_Slot]:
        slot = self._free.get()
        try:
            yield slot
        finally:
            self._free.put(slot)

    def _image_bytes(self) -> int:
        width, height = self.input_size_wh
        return height * width * 3

    def _row_bytes(self) -> int:
        return self._candidates * 6 * np.dtype(np.float32).itemsize

    def _check_tensors(self, trt: Any) -> tuple[tuple[int, int], int]:
        """The input's width and height, and the number of candidates."""
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {
            name: (
                engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
                engine.get_tensor_dtype(name),
                tuple(engine.get_tensor_shape(name)),
            )
            for name in names
        }
        match found:
            case {
                "images": (True, trt.DataType.UINT8, (-1, int(height), int(width), 3)),
                "candidates": (False, trt.DataType.FLOAT, (-1, int(rows), 6)),
            } if len(found) == 2 and min(height, width, rows) > 0:
                return (width, height), rows
        tensors = "; ".join(f"{name} {kind} {dims}" for name, (_, kind, dims) in found.items())
        raise EngineError(
            f"{self._path} has the tensors {tensors}; a detector has images UINT8"
            " (-1, H, W, 3); candidates FLOAT (-1, K0, 6)"
        )


class _Slot:
    """An execution context with all that a batch needs to pass through it."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._owned: list[Buffers] = []
        self.stream = cuda.new_stream()
        self.context: Any = None

    def prepare(self, engine: Any, image_bytes: int, row_bytes: int) -> None:
        """Allocate for the greatest batch and tell the context where its tensors lie."""
        largest = int(engine.get_tensor_profile_shape("images", 0)[2][0])
        for size in (image_bytes, row_bytes):
            self._owned.append(Buffers(self._cuda, largest * size))
        self.images, self.candidates = self._owned
        self.images.bytes[:] = 0
        self.context = engine.create_execution_context()
        if self.context is None:
            raise EngineError("TensorRT has no memory for another execution context: ask for fewer")
        for name, buffers in (("images", self.images), ("candidates", self.candidates)):
            if not self.context.set_tensor_address(name, buffers.device):
                raise EngineError(f"TensorRT refuses the memory of the tensor {name!r}")

    def free(self) -> None:
        self.context = None
        for buffers in self._owned:
            buffers.free()
        self._cuda.call("cudaStreamDestroy", self.stream)


def _close(cuda: Cuda, slots: list[_Slot]) -> None:
    cuda.use()
    while slots:
        slots.pop().free()
