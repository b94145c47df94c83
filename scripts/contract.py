"""What a detector's ONNX file has to be, and what it says of itself.

Every command from import to promotion hands on one kind of file: tensors of the pipeline's
contract, and metadata that tells how images are fitted to it and what its classes are called.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from detserve.imaging import PreprocessSettings

__all__ = ["CANDIDATES", "ContractError", "DetectorInfo", "load_model"]

CANDIDATES = 300  # rows of `candidates`: K0 of the pipeline's contract
CONTRACT = "images UINT8 [N, H, W, 3] -> candidates FLOAT [N, 300, 6]"


class ContractError(ValueError):
    """A file is no detector of the pipeline's contract; the message says what it is."""


@dataclass(frozen=True, kw_only=True)
class DetectorInfo:
    """What a detector's file says of itself.

    Attributes:
        input_size_wh: Width and height of the input in pixels, from the tensor `images`.
        family: Key of `families.FAMILIES`.
        source: Where the model comes from.
        labels: Names of the classes, by index; empty if unknown.
        resize: `letterbox` or `stretch`; see `detserve.imaging.PreprocessSettings`.
        anchor: Where a letterboxed image lies, `center` or `top-left`.
        pad_value: Grey of the padding, 0 to 255.
        iou_threshold: Overlap above which postprocessing suppresses a box, unless a request says
            otherwise; 1 for a family that needs no non-maximum suppression.
        variant: What was done to the model since its import, such as `fp32` or `int8`.
    """

    input_size_wh: tuple[int, int]
    family: str = ""
    source: str = ""
    labels: tuple[str, ...] = ()
    resize: str = "letterbox"
    anchor: str = "center"
    pad_value: int = 114
    iou_threshold: float = 0.5
    variant: str = "fp32"

    @classmethod
    def of(cls, model: onnx.ModelProto) -> Self:
        """Check a model's tensors and read its metadata.

        Raises:
            ContractError: The tensors are others, or the metadata is damaged.
        """
        width_height = _input_size_wh(model.graph)
        values: dict[str, Any] = {
            prop.key: prop.value
            for prop in model.metadata_props
            if prop.key in cls.__dataclass_fields__ and prop.key != "input_size_wh"
        }
        try:
            if "labels" in values:
                values["labels"] = tuple(json.loads(values["labels"]))
            for name, kind in (("pad_value", int), ("iou_threshold", float)):
                if name in values:
                    values[name] = kind(values[name])
            info = cls(input_size_wh=width_height, **values)
            info.preprocess_settings()
            if not 0 <= info.iou_threshold <= 1:
                raise ValueError(f"iou_threshold is {info.iou_threshold:g}, not from 0 to 1")
        except (TypeError, ValueError) as error:
            raise ContractError(f"the model's metadata is damaged: {error}") from error
        return info

    def write_to(self, model: onnx.ModelProto) -> None:
        """Put the metadata into a model, beside what others have put there."""
        width, height = self.input_size_wh
        values = {
            "family": self.family,
            "source": self.source,
            "input_size_hw": f"{height}x{width}",
            "labels": json.dumps(self.labels),
            "resize": self.resize,
            "anchor": self.anchor,
            "pad_value": str(self.pad_value),
            "iou_threshold": str(self.iou_threshold),
            "variant": self.variant,
        }
        others = {p.key: p.value for p in model.metadata_props if p.key not in values}
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, others | values)

    def with_variant(self, variant: str) -> Self:
        """The same detector after something was done to it."""
        return replace(self, variant=variant)

    def preprocess_settings(self) -> PreprocessSettings:
        """How images are fitted to the detector's input.

        Raises:
            ValueError: A setting has a value that there is not.
        """
        width, height = self.input_size_wh
        parameters = {name: str(getattr(self, name)) for name in ("resize", "anchor", "pad_value")}
        return PreprocessSettings.from_parameters(parameters, width=width, height=height)


def load_model(path: Path) -> tuple[onnx.ModelProto, DetectorInfo]:
    """Read a detector of the contract.

    Raises:
        ContractError: The file cannot be read, or its tensors are others.
    """
    try:
        model = onnx.load(path, format="protobuf")  # whatever it is called
    except (DecodeError, OSError, onnx.checker.ValidationError) as error:
        raise ContractError(f"{path} cannot be read as an ONNX model: {error}") from error
    try:
        return model, DetectorInfo.of(model)
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from error


def _input_size_wh(graph: onnx.GraphProto) -> tuple[int, int]:
    initializers = {item.name for item in graph.initializer}
    inputs = [_signature(info) for info in graph.input if info.name not in initializers]
    outputs = [_signature(info) for info in graph.output]
    match inputs, outputs:
        case (
            [("images", "UINT8", [str(), int(height), int(width), 3])],
            [("candidates", "FLOAT", [str(), 300, 6])],
        ):
            return width, height
    found = " -> ".join(
        ", ".join(f"{name} {kind} [{', '.join(map(str, dims))}]" for name, kind, dims in tensors)
        for tensors in (inputs, outputs)
    )
    raise ContractError(
        f"the model has {found or 'no tensors'}; a detector has {CONTRACT} with N dynamic, which"
        " scripts/import_detector.py makes of a model as it was exported"
    )


def _signature(info: onnx.ValueInfoProto) -> tuple[str, str, list[int | str]]:
    tensor = info.type.tensor_type
    dims: list[int | str] = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?"
        for dim in tensor.shape.dim
    ]
    return info.name, TensorProto.DataType.Name(tensor.elem_type), dims
