"""What a TensorRT plan says of itself in its first bytes, readable without TensorRT."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from detserve.engines._base import EngineError

__all__ = ["PlanHeader", "read_plan_header"]

# NVIDIA documents no layout; that bytes 24 to 27 are the version was said by TensorRT's developers
# (github.com/NVIDIA/TensorRT/issues/3073) and holds for what TensorRT-RTX 1.7 writes.
_TAGS = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
_VERSION = slice(24, 28)
_PRODUCTS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class PlanHeader:
    """Which library wrote a plan.

    Attributes:
        module: Name of its Python module, `tensorrt` or `tensorrt_rtx`.
        version: Its major, minor, patch and build number, each modulo 256.
    """

    module: str
    version: tuple[int, int, int, int]

    def __str__(self) -> str:
        return f"{_PRODUCTS[self.module]} {'.'.join(map(str, self.version))}"

    def built_by(self, version: str) -> bool:
        """Whether a module that calls itself `version` (11.1.0.106, or 10.5.0) writes this."""
        # Some packages of TensorRT leave the build number out of __version__.
        numbers = [int(part) % 256 for part in version.split(".")[:4] if part.isdecimal()]
        return list(self.version[: len(numbers)]) == numbers


def read_plan_header(path: str | os.PathLike[str]) -> PlanHeader:
    """Read which library wrote a plan.

    Args:
        path: The plan.

    Raises:
        EngineError: The file cannot be read or is no plan.
    """
    try:
        with Path(path).open("rb") as file:
            start = file.read(_VERSION.stop)
    except OSError as error:
        raise EngineError(f"cannot read the plan {os.fspath(path)}: {error.strerror}") from error
    if len(start) < _VERSION.stop or start[:4] not in _TAGS:
        raise EngineError(
            f"{os.fspath(path)} is no TensorRT plan: it begins with {start[:4]!r}, a plan with"
            " b'ftrt' (TensorRT) or b'vtrt' (TensorRT-RTX); scripts/build_plan.py builds one"
        )
    major, minor, patch, build = start[_VERSION]
    return PlanHeader(_TAGS[start[:4]], (major, minor, patch, build))
