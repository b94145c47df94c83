"""The few calls of CUDA's runtime that an engine needs, through NVIDIA's cuda-bindings."""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from detserve.engines._base import EngineError, UInt8Array

__all__ = ["Buffers", "Cuda", "Gpu", "find_gpu"]


@dataclass(frozen=True)
class Gpu:
    """A GPU's name and its compute capability, such as 9.0."""

    name: str
    compute_capability: str


class Cuda:
    """CUDA's runtime on one GPU; every error is an `EngineError` in words."""

    def __init__(self, device: int = 0) -> None:
        """Find the GPU.

        Args:
            device: Index of the GPU, in CUDA's order.

        Raises:
            EngineError: cuda-bindings, the driver or the GPU is missing.
        """
        try:
            self._runtime: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise EngineError(
                f"CUDA's Python bindings cannot be imported ({error}): install them with"
                " pip install cuda-bindings, of the major version that the driver has"
            ) from error
        error_code, count = self._runtime.cudaGetDeviceCount()
        if error_code != self._runtime.cudaError_t.cudaSuccess or not count:
            raise EngineError(
                f"there is no NVIDIA GPU that CUDA can use ({self._words(error_code)}): a plan runs"
                " on the kind of GPU that it was built on, with NVIDIA's driver; in a container"
                " the GPU has to be passed in (docker run --gpus all)"
            )
        if not 0 <= device < count:
            raise EngineError(f"there is no GPU {device}: CUDA sees {count}, counted from 0")
        self._device = device

    def call(self, name: str, *args: Any) -> Any:
        """Call a function of CUDA's runtime and return what it gives beside its status.

        Raises:
            EngineError: CUDA reports an error.
        """
        error_code, *values = getattr(self._runtime, name)(*args)
        if error_code != self._runtime.cudaError_t.cudaSuccess:
            raise EngineError(f"CUDA failed in {name}: {self._words(error_code)}")
        return values[0] if values else None

    def use(self) -> None:
        """Make the GPU the calling thread's."""
        self.call("cudaSetDevice", self._device)

    def gpu(self) -> Gpu:
        """Name and compute capability of the GPU."""
        found = self.call("cudaGetDeviceProperties", self._device)
        name = found.name.decode() if isinstance(found.name, bytes) else str(found.name)
        return Gpu(name.rstrip("\0"), f"{found.major}.{found.minor}")

    def new_stream(self) -> int:
        """A stream that does not wait for the default one; its handle."""
        return int(self.call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def upload(self, buffers: Buffers, size: int, stream: int) -> None:
        """Copy the first `size` bytes to the GPU, in the stream's order."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", buffers.device, buffers.host, size, kind, stream)

    def download(self, buffers: Buffers, size: int, stream: int) -> None:
        """Copy the first `size` bytes from the GPU, in the stream's order."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", buffers.host, buffers.device, size, kind, stream)

    def _words(self, error_code: Any) -> str:
        _, text = self._runtime.cudaGetErrorString(error_code)
        return f"{text.decode()}, error {int(error_code)}"


def find_gpu(device: int = 0) -> Gpu:
    """The GPU that TensorRT uses.

    Args:
        device: Its index, in CUDA's order.

    Raises:
        EngineError: cuda-bindings, the driver or the GPU is missing.
    """
    return Cuda(device).gpu()


class Buffers:
    """A piece of pinned host memory and its counterpart on the GPU."""

    def __init__(self, cuda: Cuda, size: int) -> None:
        """Allocate `size` bytes on either side."""
        self._cuda = cuda
        self.device = 0
        self.host = int(cuda.call("cudaHostAlloc", size, 0))
        self.bytes: UInt8Array = np.ctypeslib.as_array(
            (ctypes.c_uint8 * size).from_address(self.host)
        )
        try:
            self.device = int(cuda.call("cudaMalloc", size))
        except EngineError:
            self.free()
            raise

    def free(self) -> None:
        """Give the memory back; views of `bytes` are dead from then on."""
        self.bytes = np.empty(0, np.uint8)
        self._cuda.call("cudaFreeHost", self.host)
        if self.device:
            self._cuda.call("cudaFree", self.device)
