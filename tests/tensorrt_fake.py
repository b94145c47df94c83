"""Stand-ins for TensorRT and CUDA, which cannot exist on a machine without an NVIDIA GPU.

They have the part of the API that `TensorRTEngine` uses and keep its rules: sizes within the
profile, addresses set, memory allocated, work ordered by a stream and done when it is waited for.
"Device memory" is host memory. `tests/lab/test_tensorrt_engine.py` holds the names against the
real libraries; whether the real ones then compute what they should only a GPU can show.
"""

from __future__ import annotations

import ctypes
import enum
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FakeCuda", "FakeTensorRT"]

HEIGHT, WIDTH, ROWS = 4, 5, 3


class CudaError(enum.IntEnum):
    cudaSuccess = 0  # noqa: N815 - CUDA's names
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorInsufficientDriver = 35  # noqa: N815


class FakeCuda:
    """`cuda.bindings.runtime`."""

    cudaError_t = CudaError  # noqa: N815
    cudaStreamNonBlocking = 1  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815

    def __init__(self, gpus: int = 1, memory: int = 1 << 30) -> None:
        self.gpus = gpus
        self.free_memory = memory
        self.allocated: dict[int, Any] = {}
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.failing = ""  # name of a call that fails

    def cudaGetDeviceCount(self) -> tuple[CudaError, int | None]:  # noqa: N802
        if self.gpus:
            return CudaError.cudaSuccess, self.gpus
        return CudaError.cudaErrorInsufficientDriver, None

    def cudaGetErrorString(self, error: CudaError) -> tuple[CudaError, bytes]:  # noqa: N802
        return CudaError.cudaSuccess, b"words for " + error.name.encode()

    def cudaSetDevice(self, device: int) -> tuple[CudaError]:  # noqa: N802
        assert 0 <= device < self.gpus
        return (CudaError.cudaSuccess,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[CudaError, Any]:  # noqa: N802
        name = f"GPU {device}".encode().ljust(256, b"\0")
        return CudaError.cudaSuccess, SimpleNamespace(name=name, major=9, minor=0)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[CudaError, int]:  # noqa: N802
        assert flags == self.cudaStreamNonBlocking
        stream = len(self.streams) + 1000
        self.streams[stream] = []
        return CudaError.cudaSuccess, stream

    def cudaStreamDestroy(self, stream: int) -> tuple[CudaError]:  # noqa: N802
        assert self.streams.pop(stream) == []
        return (CudaError.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[CudaError]:  # noqa: N802
        if self.failing == "cudaStreamSynchronize":
            return (CudaError.cudaErrorMemoryAllocation,)
        work, self.streams[stream] = self.streams[stream], []
        for step in work:
            step()
        return (CudaError.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[CudaError, int | None]:  # noqa: N802
        if size > self.free_memory:
            return CudaError.cudaErrorMemoryAllocation, None
        self.free_memory -= size
        block = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(block)
        self.allocated[address] = block
        return CudaError.cudaSuccess, address

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[CudaError, int | None]:  # noqa: N802
        assert flags == 0
        return self.cudaMalloc(size)

    def cudaFree(self, address: int) -> tuple[CudaError]:  # noqa: N802
        self.free_memory += len(self.allocated.pop(address))
        return (CudaError.cudaSuccess,)

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemcpyAsync(  # noqa: N802
        self, to: int, source: int, size: int, kind: int, stream: int
    ) -> tuple[CudaError]:
        assert kind in (1, 2)
        for address in (to, source):
            assert size <= len(self.allocated[address])

        def copy() -> None:
            ctypes.memmove(to, source, size)

        self.streams[stream].append(copy)
        return (CudaError.cudaSuccess,)


class FakeTensorRT:
    """`tensorrt`, with one engine: the first row of an image's candidates has its mean colour."""

    __version__ = "11.1.0.106"
    TensorIOMode = enum.Enum("TensorIOMode", "INPUT OUTPUT")
    DataType = enum.Enum("DataType", "UINT8 FLOAT HALF")

    class ILogger:
        """What TensorRT writes its messages to."""

        Severity = enum.IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING", start=0)

    def __init__(self, cuda: FakeCuda, *, batch: tuple[int, int, int] = (1, 2, 4)) -> None:
        self.cuda = cuda
        self.batch = batch
        self.input_dtype = self.DataType.UINT8
        self.output_name = "candidates"
        self.deserializes = True
        self.executes = True
        self.seconds = 0.0  # that a batch takes
        self.batches: list[int] = []
        self.running = self.most_running = 0
        self.contexts = 0
        self.host_code_allowed = False
        self.lock = threading.Lock()

    def Runtime(self, logger: Any) -> Runtime:  # noqa: N802
        return Runtime(self, logger)


class Runtime:
    def __init__(self, trt: FakeTensorRT, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    @property
    def engine_host_code_allowed(self) -> bool:
        return self._trt.host_code_allowed

    @engine_host_code_allowed.setter
    def engine_host_code_allowed(self, value: bool) -> None:
        self._trt.host_code_allowed = value

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        assert serialized_engine[:4] == b"ftrt"
        if self._trt.deserializes:
            return Engine(self._trt)
        self._logger.log(self._trt.ILogger.Severity.WARNING, "a warning")
        self._logger.log(self._trt.ILogger.Severity.ERROR, "the plan is of another GPU")
        return None


class Engine:
    num_io_tensors = 2

    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt

    def get_tensor_name(self, index: int) -> str:
        return ["images", self.trt.output_name][index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if name == "images" else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.input_dtype if name == "images" else self.trt.DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, HEIGHT, WIDTH, 3) if name == "images" else (-1, ROWS, 6)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert (name, profile_index) == ("images", 0)
        return [(size, HEIGHT, WIDTH, 3) for size in self.trt.batch]

    def create_execution_context(self) -> ExecutionContext:
        self.trt.contexts += 1
        return ExecutionContext(self.trt)


class ExecutionContext:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory in self._trt.cuda.allocated
        self._addresses[name] = memory
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "images"
        self._shape = shape
        return self._trt.batch[0] <= shape[0] <= self._trt.batch[2]

    def execute_async_v3(self, stream_handle: int) -> bool:
        shape = self._shape
        self._trt.cuda.streams[stream_handle].append(lambda: self._compute(shape))
        return self._trt.executes

    def _compute(self, shape: tuple[int, ...]) -> None:
        trt = self._trt
        with trt.lock:
            trt.batches.append(shape[0])
            trt.running += 1
            trt.most_running = max(trt.most_running, trt.running)
        time.sleep(trt.seconds)
        images = self._array("images", np.uint8, shape)
        candidates = self._array("candidates", np.float32, (shape[0], ROWS, 6))
        candidates[:] = 0
        candidates[:, 0, 0] = images.mean(axis=(1, 2, 3))
        with trt.lock:
            trt.running -= 1

    def _array(self, name: str, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        block = self._trt.cuda.allocated[self._addresses[name]]
        return np.frombuffer(block, dtype, count=int(np.prod(shape))).reshape(shape)
