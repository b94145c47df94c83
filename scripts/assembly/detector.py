"""What the file of a detector is: an ONNX model, or a TensorRT plan and the record beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnx import TensorProto

from assembly.serving import ENGINES
from contract import ContractError, DetectorInfo, load_model
from detserve.engines import EngineError, read_plan_header
from detserve.repository import RepositoryError
from plan import PlanError, PlanRecord
from plan.record import record_path

__all__ = ["DetectorFile", "read_detector_file"]


@dataclass(frozen=True)
class DetectorFile:
    """A detector's file, found good.

    Attributes:
        path: The file.
        engine: Key of `ENGINES`.
        info: What it says of itself.
        said: Which of that it says; the rest are defaults.
        max_batch: Greatest batch that it can run; None if it has no such limit.
        record: The file that tells of a plan what it does not tell itself, if there is one.
    """

    path: Path
    engine: str
    info: DetectorInfo
    said: frozenset[str] = frozenset(DetectorInfo.__dataclass_fields__)
    max_batch: int | None = None
    record: Path | None = None


def read_detector_file(path: Path, engine: str, source: Path | None = None) -> DetectorFile:
    """Read a detector's file.

    Args:
        path: ONNX file, or plan for `tensorrt`.
        engine: Key of `ENGINES`.
        source: The ONNX file that a plan without a record was built from.

    Raises:
        RepositoryError: It is none for that engine, or no detector of the contract.
    """
    if engine not in ENGINES:
        raise RepositoryError(f"there is no engine {engine!r}: choose from {', '.join(ENGINES)}")
    try:
        if engine == "tensorrt":
            return _read_plan(path, source)
        return DetectorFile(path, engine, *_read_onnx(path))
    except (ContractError, EngineError, PlanError) as error:
        raise RepositoryError(str(error)) from error


def _read_onnx(path: Path) -> tuple[DetectorInfo, frozenset[str]]:
    if path.suffix == ".plan":
        raise RepositoryError(f"{path} is a TensorRT plan: serve it with --engine tensorrt")
    model, info = load_model(path)
    if any(item.data_location == TensorProto.EXTERNAL for item in model.graph.initializer):
        raise RepositoryError(f"{path} keeps weights in other files: save it as one file")
    return info, frozenset(prop.key for prop in model.metadata_props)


def _read_plan(path: Path, source: Path | None) -> DetectorFile:
    if path.suffix == ".onnx":
        raise RepositoryError(
            f"{path} is an ONNX model, and Triton's TensorRT backend serves plans: build one with"
            " scripts/build_plan.py on the GPU that will serve it"
        )
    header = read_plan_header(path)
    if header.module != "tensorrt":
        raise RepositoryError(
            f"{path} was built by {header}, whose plans Triton cannot load: build it with"
            " scripts/build_plan.py --module tensorrt on the GPU that will serve it"
        )
    if not record_path(path).is_file() and source is not None:
        return DetectorFile(path, "tensorrt", *_read_onnx(source))
    record = PlanRecord.read(path)
    least, _, greatest = record.batch
    if least > 1:
        raise RepositoryError(
            f"{path} refuses single images: its profile begins at {least}. Build it with a"
            " profile that begins at 1"
        )
    return DetectorFile(
        path,
        "tensorrt",
        record.detector,
        max_batch=greatest,
        record=record_path(path),
    )
