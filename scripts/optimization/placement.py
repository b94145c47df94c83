"""Which nodes of a detector are computed in int8, and which tensors are quantised for that."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import onnx

from optimization.network import Network

__all__ = ["Placement", "place"]

# What joins int8 tensors in kernels of its own, with the inputs that are data.
_JOINING = frozenset({"Add", "Mul", "Sigmoid", "Concat", "MaxPool", "Resize"})
_FIRST_INPUT_ONLY = frozenset({"Sigmoid", "MaxPool", "Resize"})
_SAME_SCALE = frozenset({"MaxPool", "Resize"})  # values pass through unchanged
_ACTIVATIONS = frozenset({"Clip", "Relu"})  # what saturation can stand in for


@dataclass(frozen=True)
class Placement:
    """Where a detector is quantised.

    Attributes:
        nodes: First outputs of the nodes computed in int8.
        tensors: The float tensors that are quantised, in topological order.
        same_as: Tensors that take another one's range.
        activations: Output of a Clip or Relu to the output of the convolution before it.
    """

    nodes: frozenset[str]
    tensors: tuple[str, ...]
    same_as: dict[str, str] = field(default_factory=dict)
    activations: dict[str, str] = field(default_factory=dict)


def place(model: onnx.ModelProto, results: bool, float_layers: Collection[str] = ()) -> Placement:
    """Choose what is computed in int8.

    Args:
        model: A float32 detector.
        results: Whether int8 nodes also give int8, so that what joins them is int8 too; else only
            what convolutions read is quantised.
        float_layers: Convolutions, by their output tensors, that stay in float.
    """
    network = Network(model)
    convs = [conv for conv in network.convolutions() if conv.output[0] not in float_layers]
    if not results:
        read = dict.fromkeys(conv.input[0] for conv in convs)
        return Placement(frozenset(conv.output[0] for conv in convs), tuple(read))

    nodes = {conv.output[0] for conv in convs}
    activations = {}
    coded: dict[str, str] = {}  # results of int8 nodes, and what made them
    for node in network.nodes:
        name = node.output[0]
        if node.op_type in _ACTIVATIONS and node.input[0] in nodes:
            if len(network.consumers[node.input[0]]) == 1:
                activations[name] = node.input[0]
                coded.pop(node.input[0])
                coded[name] = node.input[0]
            continue
        if node.op_type in _JOINING and all(i in coded for i in _data(node)):
            nodes.add(name)
        if name in nodes:
            coded[name] = name
    # A joining node is worth it only if its result is read in int8.
    for node in reversed(network.nodes):
        name = node.output[0]
        if name in nodes and node.op_type in _JOINING:
            readers = network.consumers.get(name, [])
            if name in network.outputs or not any(r.output[0] in nodes for r in readers):
                nodes.remove(name)
                del coded[name]
    tensors: dict[str, None] = {}
    same_as: dict[str, str] = {}
    for node in network.nodes:
        name = node.output[0]
        if name in nodes:
            tensors.update(dict.fromkeys(_data(node)))
        if name in coded:
            tensors[name] = None
            if node.op_type in _SAME_SCALE:
                same_as[name] = same_as.get(node.input[0], node.input[0])
    return Placement(frozenset(nodes), tuple(tensors), same_as, activations)


def _data(node: onnx.NodeProto) -> list[str]:
    """The inputs of an int8 node that are activations."""
    single = node.op_type == "Conv" or node.op_type in _FIRST_INPUT_ONLY
    return [node.input[0]] if single else list(node.input)
