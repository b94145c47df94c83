"""Zeros in the weights of a detector: unstructured, and in TensorRT's 2:4 pattern.

Both keep every shape, so by themselves they change what a file compresses to and nothing else:
ONNX Runtime and OpenVINO multiply by the zeros. TensorRT has kernels for the 2:4 pattern, on GPUs
since Ampere, and picks one only where it is faster than the dense one, which takes layers of some
hundred channels. What makes a network smaller for every runtime is `optimization.channels`.

Weights that go cost accuracy, and these functions do not train: of the mAP of 0.338 that
SSDLite-MobileNetV2 has on coco128, 30 % of unstructured zeros leave 0.018, and 50 % or the 2:4
pattern next to nothing; YOLOX-Nano does no better. Small depthwise detectors have no weights to
spare. Who can should prune, train on with the same weights held at zero, and export again:
`sparsity_by_layer` tells how many there are, and the zeros of the file are the mask.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from optimization.complexity import (
    WEIGHTED,
    Complexity,
    PruningError,
    attribute,
    check_fraction,
    macs_and_parameters,
)
from optimization.network import copy_model

__all__ = [
    "Complexity",
    "LayerSparsity",
    "PruningError",
    "is_2_4",
    "macs_and_parameters",
    "prune_2_4",
    "prune_unstructured",
    "sparsity_by_layer",
]

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class LayerSparsity:
    """The zeros of one layer's weights.

    Attributes:
        layer: Name of the node, or of its output if it has none.
        shape: Shape of the weights.
        zeros: How many of them are zero.
        two_four: Whether they have the 2:4 pattern.
        obstacle: Why the layer cannot have the 2:4 pattern; empty if it can.
    """

    layer: str
    shape: tuple[int, ...]
    zeros: int
    two_four: bool
    obstacle: str

    @property
    def fraction(self) -> float:
        """Zeros' share of the weights, 0 to 1."""
        return self.zeros / max(1, math.prod(self.shape))


@dataclass(frozen=True)
class _Layer:
    node: onnx.NodeProto
    weight: onnx.TensorProto
    input_axis: int  # of the weights, along which the input's channels lie

    @property
    def name(self) -> str:
        return str(self.node.name or self.node.output[0])

    @property
    def obstacle(self) -> str:
        """Why the layer cannot have the 2:4 pattern."""
        channels = self.weight.dims[self.input_axis]
        if self.node.op_type == "ConvTranspose":
            return "sparse kernels are for convolutions and matrix products, not for ConvTranspose"
        if channels == 1:
            return "one input channel for each filter (depthwise or first layer)"
        return f"{channels} input channels are no multiple of 4" if channels % 4 else ""


def prune_unstructured(model: onnx.ModelProto, fraction: float) -> onnx.ModelProto:
    """Zero the smallest weights of the whole network.

    By magnitude, over all layers at once (Han et al., Learning both Weights and Connections for
    Efficient Neural Networks, 2015). No layer is spared: see `sparsity_by_layer` of the result.

    Args:
        model: Any model with constant float weights of convolutions, Gemms or MatMuls.
        fraction: Share of those weights to zero, between 0 and 1. Zeros that are there count.

    Returns:
        A copy with the weights zeroed; biases are as they were.

    Raises:
        PruningError: The fraction is out of range, or there are no such weights.
    """
    check_fraction(fraction)
    pruned, layers = _copy(model)
    weights = {layer.weight.name: layer.weight for layer in layers}
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in weights.items()}
    sizes = np.concatenate([np.abs(array, dtype=np.float32).ravel() for array in arrays.values()])
    order = np.argsort(sizes, kind="stable")
    keep = np.ones(len(sizes), np.bool_)
    keep[order[: round(fraction * len(sizes))]] = False
    for name, array in arrays.items():
        mask, keep = keep[: array.size], keep[array.size :]
        _store(weights[name], np.where(mask.reshape(array.shape), array, array.dtype.type(0)))
    return pruned


def prune_2_4(model: onnx.ModelProto) -> onnx.ModelProto:
    """Zero the two smallest of every four weights along the input channels.

    The pattern of NVIDIA's sparse tensor cores (Mishra et al., Accelerating Sparse Deep Neural
    Networks, 2021), for each filter and each position of the kernel. Layers whose input channels
    are no multiple of 4, depthwise ones among them, stay dense: `sparsity_by_layer` names them.

    Raises:
        PruningError: No layer can have the pattern.
    """
    pruned, layers = _copy(model)
    possible = {layer.weight.name: layer for layer in layers if not layer.obstacle}
    if not possible:
        obstacles = sorted({layer.obstacle for layer in layers})
        raise PruningError(f"no layer can have the 2:4 pattern: {'; '.join(obstacles)}")
    for layer in possible.values():
        array = numpy_helper.to_array(layer.weight).copy()
        fours = _fours(array, layer.input_axis)
        smallest = np.argsort(np.abs(fours), axis=-1, kind="stable")[..., :2]
        np.put_along_axis(fours, smallest, 0, axis=-1)
        restored = np.moveaxis(
            fours.reshape(np.moveaxis(array, layer.input_axis, -1).shape), -1, layer.input_axis
        )
        _store(layer.weight, restored)
    return pruned


def is_2_4(weights: Array, axis: int = 1) -> bool:
    """Tell whether at most two of every four consecutive weights along an axis are not zero.

    Args:
        weights: Of any shape; those of a convolution are [K, C, R, S].
        axis: Axis of the input channels.
    """
    length = weights.shape[axis]
    if length % 4:
        return False
    filled = [
        np.take(weights, range(start, length, 4), axis=axis) != 0 for start in range(4)
    ]  # one array for each place in a group of four
    return bool((np.sum(filled, axis=0) <= 2).all())


def sparsity_by_layer(model: onnx.ModelProto) -> tuple[LayerSparsity, ...]:
    """Count the zeros of every layer, in the order of the graph."""
    report = []
    for layer in _layers(model):
        array = numpy_helper.to_array(layer.weight)
        report.append(
            LayerSparsity(
                layer=layer.name,
                shape=array.shape,
                zeros=array.size - int(np.count_nonzero(array)),
                two_four=not layer.obstacle and is_2_4(array, layer.input_axis),
                obstacle=layer.obstacle,
            )
        )
    return tuple(report)


def _copy(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[_Layer]]:
    """Copy a model and find its layers."""
    pruned = copy_model(model)
    layers = list(_layers(pruned))
    if not layers:
        raise PruningError(
            "the model has no constant float weights of convolutions, Gemms or MatMuls; one that"
            " is quantised has to be pruned before that"
        )
    return pruned, layers


def _layers(model: onnx.ModelProto) -> Iterator[_Layer]:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    tensors = {item.name: item for item in model.graph.initializer}
    tensors |= {
        node.output[0]: value.t
        for node in model.graph.node
        if node.op_type == "Constant"
        for value in node.attribute
        if value.name == "value"
    }
    for node in model.graph.node:
        weight = tensors.get(node.input[1]) if node.op_type in WEIGHTED else None
        if weight is None or weight.data_type not in floats or len(weight.dims) < 2:
            continue
        axis = {"Conv": 1, "ConvTranspose": 0, "MatMul": len(weight.dims) - 2}.get(
            node.op_type, attribute(node, "transB", 0)
        )
        yield _Layer(node, weight, axis)


def _fours(array: Array, axis: int) -> Array:
    """A copy in which groups of four along an axis lie along a last axis of their own."""
    last = np.moveaxis(array, axis, -1)
    return np.ascontiguousarray(last).reshape(*last.shape[:-1], -1, 4)


def _store(tensor: onnx.TensorProto, array: Array) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
