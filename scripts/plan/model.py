"""What has to be known of an ONNX detector before TensorRT reads it."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from contract import ContractError, DetectorInfo
from plan.errors import PlanError

__all__ = ["precision_of", "read_detector"]

_OLDEST_OPSET = 9  # as TensorRT documents


def read_detector(path: Path) -> tuple[onnx.ModelProto, DetectorInfo]:
    """Read a detector of the contract without its external data.

    Args:
        path: The ONNX file.

    Raises:
        PlanError: It is no such detector, or TensorRT would take it for another than it is.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise PlanError(
            f"{path} cannot be read as an ONNX model ({error}): it is missing, something else, or"
            " only a part of one"
        ) from error
    if not model.graph.node:
        raise PlanError(f"{path} is no ONNX model, or an empty one ({path.stat().st_size} bytes)")
    try:
        info = DetectorInfo.of(model)
    except ContractError as error:
        fixed = _fixed_batch(model)
        hint = f". Its batch is fixed to {fixed}: no profile over batches fits it" if fixed else ""
        raise PlanError(f"{path}: {error}{hint}") from error
    _check_opset(path, model)
    _check_external_data(path, model)
    return model, info


def precision_of(model: onnx.ModelProto) -> str:
    """The precision that a strongly typed network takes from its file: fp32, fp16, int8, or two."""
    kinds = {
        name
        for name, found in (
            ("int8", any(node.op_type == "QuantizeLinear" for node in model.graph.node)),
            ("fp16", any(t.data_type == TensorProto.FLOAT16 for t in model.graph.initializer)),
        )
        if found
    }
    return "+".join(sorted(kinds, reverse=True)) or "fp32"


def _fixed_batch(model: onnx.ModelProto) -> int:
    """The first dimension of the first input; 0 if it is dynamic or there is none."""
    dims = [info.type.tensor_type.shape.dim for info in model.graph.input[:1]]
    return int(dims[0][0].dim_value) if dims and dims[0] else 0


def _check_opset(path: Path, model: onnx.ModelProto) -> None:
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        # TensorRT's parser reads any number, by the rules of the newest opset that it knows.
        if opset.domain in ("", "ai.onnx") and not _OLDEST_OPSET <= opset.version <= newest:
            raise PlanError(
                f"{path} is of ONNX opset {opset.version}; {_OLDEST_OPSET} to {newest} can be"
                " read: export it with an opset between"
            )


def _check_external_data(path: Path, model: onnx.ModelProto) -> None:
    files = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    missing = sorted(name for name in files if not (path.parent / name).is_file())
    if missing:
        raise PlanError(
            f"{path} keeps its weights in {', '.join(missing)}, which is not in {path.parent}:"
            " keep the files together"
        )
