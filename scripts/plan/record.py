"""The record beside a plan: what it was built from, which no plan says itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from contract import DetectorInfo
from plan.errors import PlanError

__all__ = ["PlanRecord", "file_sha256", "record_path"]

_FORMAT = 1


def record_path(plan: Path) -> Path:
    """Where the record of a plan lies: `model.plan.json` beside `model.plan`."""
    return plan.with_name(plan.name + ".json")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """What a plan was built from, by what and for what.

    Attributes:
        plan_sha256: SHA-256 of the plan's file; a record is of one file alone.
        module: `tensorrt` or `tensorrt_rtx`.
        version: Its version.
        model: Name of the ONNX file.
        model_sha256: Its SHA-256.
        detector: What the ONNX file says of itself: input size, labels, how images are fitted.
        precision: `fp32`, `fp16`, `int8` or a mixture such as `int8+fp16`.
        options: `PlanOptions` as JSON; `batch` is the profile.
        gpu: Name and compute capability of the GPU that it was built on; None without one.
    """

    plan_sha256: str
    module: str
    version: str
    model: str
    model_sha256: str
    detector: DetectorInfo
    precision: str
    options: dict[str, Any]
    gpu: dict[str, str] | None

    @property
    def batch(self) -> tuple[int, int, int]:
        """Least, most usual and greatest batch."""
        least, usual, greatest = self.options["batch"]
        return least, usual, greatest

    def to_json(self) -> str:
        """The record as the file has it."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, plan: Path) -> Self:
        """Read the record of a plan.

        Raises:
            PlanError: There is none, it is damaged, or it is another plan's.
        """
        path = record_path(plan)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("format") != _FORMAT:
                raise ValueError("it is of another format")
            detector = values.pop("detector")
            for name in ("input_size_wh", "labels"):
                detector[name] = tuple(detector[name])
            record = cls(detector=DetectorInfo(**detector), **values)
            digest = file_sha256(plan)
        except OSError as error:
            raise PlanError(
                f"cannot read {error.filename}: {error.strerror}. scripts/build_plan.py writes a"
                " plan and, beside it, the record of what it was built from"
            ) from error
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PlanError(f"{path} is no record of a plan: {error}") from error
        if record.plan_sha256 != digest:
            raise PlanError(f"{path} is the record of another plan than {plan}: build it anew")
        return record
