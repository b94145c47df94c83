"""What pruning asks of a model: its shapes, its layers' costs, and the error it raises."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import onnx

from optimization.errors import OptimizationError

__all__ = [
    "WEIGHTED", "Complexity", "Dims", "PruningError", "attribute", "check_fraction", "layer_macs",
    "macs_and_parameters", "tensor_shapes",
]  # fmt: skip

Dims = tuple[int | str | None, ...]

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


class PruningError(OptimizationError):
    """A model cannot be pruned as asked; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """What a network computes and holds.

    Attributes:
        macs: Multiplications with accumulation for one image, zeros included.
        parameters: Weights and biases, zeros included.
    """

    macs: int
    parameters: int


def macs_and_parameters(model: onnx.ModelProto) -> Complexity:
    """Count a network's multiplications for one image, and its parameters.

    Convolutions, Gemms and MatMuls count, those between activations too; what is done on single
    elements does not.

    Raises:
        PruningError: A shape is not known, because the model takes inputs of any size.
    """
    shapes = tensor_shapes(model)
    constants = {item.name for item in model.graph.initializer}
    macs, counted = 0, set[str]()
    for node in model.graph.node:
        if node.op_type in WEIGHTED | {"BatchNormalization"}:
            counted.update(name for name in node.input if name in constants)
        if node.op_type in WEIGHTED:
            macs += layer_macs(node, shapes)
    parameters = sum(
        math.prod(item.dims) for item in model.graph.initializer if item.name in counted
    )
    return Complexity(macs=macs, parameters=parameters)


def check_fraction(fraction: float) -> None:
    """Refuse a share that is not between 0 and 1.

    Raises:
        PruningError: It is not.
    """
    if not 0 < fraction < 1:
        raise PruningError(f"the fraction to prune must be between 0 and 1, not {fraction}")


def tensor_shapes(model: onnx.ModelProto) -> dict[str, Dims]:
    """Infer the shape of every tensor; dimensions are numbers, names or None.

    Raises:
        PruningError: The graph is inconsistent.
    """
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise PruningError(f"the shapes of the model contradict each other: {error}") from error
    shapes: dict[str, Dims] = {item.name: tuple(item.dims) for item in graph.initializer}
    for info in [*graph.input, *graph.value_info, *graph.output]:
        if info.type.tensor_type.HasField("shape"):
            shapes[info.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
                for dim in info.type.tensor_type.shape.dim
            )
    return shapes


def layer_macs(node: onnx.NodeProto, shapes: dict[str, Dims]) -> int:
    """Multiplications of a Conv, ConvTranspose, Gemm or MatMul for one image.

    Raises:
        PruningError: A shape is not known.
    """
    source, weight, out = (shapes.get(name, (None,)) for name in (*node.input[:2], node.output[0]))
    if node.op_type == "ConvTranspose":  # every element of the input meets a kernel of each filter
        factors = [*source[1:], *weight[1:]]
    elif node.op_type == "Conv":
        factors = [*out[1:], *weight[1:]]
    else:
        across = node.op_type == "Gemm" and attribute(node, "transA", 0)
        factors = [*out[1:], source[0 if across else -1]]
    sizes = [size for size in factors if isinstance(size, int)]
    if len(sizes) != len(factors):
        raise PruningError(
            f"{node.name or node.output[0]!r}: its shape is not known; give the model's input a"
            " fixed height and width"
        )
    return math.prod(sizes)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return an attribute of a node, or the default."""
    for item in node.attribute:
        if item.name == name:
            return onnx.helper.get_attribute_value(item)
    return default
