"""Detectors for the builder of plans: a small one, and what is done to a model before a build."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

__all__ = ["to_fp16", "to_int8", "write_small_detector"]


def write_small_detector(path: Path, operator: str = "Sigmoid", domain: str = "") -> Path:
    """A detector of the contract, 20 x 15 pixels, of one convolution; each pixel a candidate."""
    weights = np.random.default_rng(0).normal(size=(6, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], "pixels", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], "planes", perm=[0, 3, 1, 2]),
        helper.make_node(
            "Conv", ["planes", "weights", "bias"], ["features"], "features", pads=[1, 1, 1, 1]
        ),
        helper.make_node(operator, ["features"], ["active"], "active", domain=domain),
        helper.make_node("Reshape", ["active", "shape"], ["flat"], "flat"),
        helper.make_node("Transpose", ["flat"], ["candidates"], "candidates", perm=[0, 2, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 15, 20, 3])],
        [helper.make_tensor_value_info("candidates", TensorProto.FLOAT, ["N", 300, 6])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.ones(6, np.float32), "bias"),
            numpy_helper.from_array(np.array([0, 6, 300]), "shape"),
        ],
    )
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def to_fp16(model: Path, output: Path) -> Path:
    """The same model in half precision, its inputs and outputs as they were."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that half precision rounds to zero
        onnx.save(convert_float_to_float16(onnx.load(model), keep_io_types=True), output)
    return output


class _Noise(CalibrationDataReader):
    """Two images of noise: enough for scales, and nothing here asks for accuracy."""

    def __init__(self, height: int, width: int) -> None:
        random = np.random.default_rng(0)
        self._images = [random.integers(0, 256, (1, height, width, 3), np.uint8) for _ in "ab"]

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        return {"images": self._images.pop()} if self._images else None


def to_int8(
    model: Path,
    output: Path,
    *,
    activations: str = "int8",
    symmetric: bool = True,
    quantize_bias: bool = False,
) -> Path:
    """The same model, its convolutions quantised; as TensorRT takes it, unless told otherwise."""
    shape = onnx.load(model).graph.input[0].type.tensor_type.shape
    quantize_static(
        model,
        output,
        _Noise(shape.dim[1].dim_value, shape.dim[2].dim_value),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8 if activations == "int8" else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        extra_options={
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            "QuantizeBias": quantize_bias,
        },
    )
    return output
