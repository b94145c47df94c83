"""What the optimisations ask of a graph: who makes a tensor, who reads it, which are constant."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import onnx
from onnx import TensorProto, numpy_helper

__all__ = ["Network", "copy_model", "replace_input", "sort_nodes"]

Array = npt.NDArray[Any]

_COMPUTING = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


class Network:
    """An index of a model's graph; made anew when the graph has changed.

    Attributes:
        model: The model, not a copy.
        nodes: Its nodes in topological order.
        producers: Tensor to the node that makes it.
        consumers: Tensor to the nodes that read it, each once.
        outputs: Names of the graph's outputs.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.nodes: list[onnx.NodeProto] = list(graph.node)
        self.outputs = {output.name for output in graph.output}
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.consumers.setdefault(name, []).append(node)
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self._constants[node.output[0]] = node.attribute[0].t

    def constant(self, name: str) -> Array | None:
        """The value of a constant tensor, None for any other."""
        tensor = self._constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def readers(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that read a node's outputs."""
        return [reader for name in node.output for reader in self.consumers.get(name, [])]

    def convolutions(self) -> list[onnx.NodeProto]:
        """The convolutions with constant float32 weights (and bias), in topological order."""
        return [
            node
            for node in self.nodes
            if node.op_type == "Conv"
            and all(
                name in self._constants and self._constants[name].data_type == TensorProto.FLOAT
                for name in node.input[1:]
                if name
            )
        ]

    def body(self) -> set[str]:
        """The network itself: first outputs of what computes with weights, and all before it.

        The rest decodes predictions.
        """
        found: set[str] = set()
        for node in reversed(self.nodes):
            if node.op_type in _COMPUTING or any(r.output[0] in found for r in self.readers(node)):
                found.add(node.output[0])
        return found

    def predictions(self) -> list[str]:
        """The tensors that the body ends in, before decoding."""
        body = self.body()
        return [
            node.output[0]
            for node in self.nodes
            if node.op_type in _COMPUTING
            and not any(reader.output[0] in body for reader in self.readers(node))
        ]


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that can be changed."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def replace_input(node: onnx.NodeProto, old: str, new: str) -> None:
    """Let a node read one tensor in place of another."""
    for index, name in enumerate(node.input):
        if name == old:
            node.input[index] = new


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put a graph's nodes into topological order, those that are free in the order they had."""
    nodes = list(graph.node)
    makers = {name: index for index, node in enumerate(nodes) for name in node.output}
    order: dict[int, None] = {}
    for root in range(len(nodes)):
        stack = [root]
        while stack:
            needed = [makers[name] for name in nodes[stack[-1]].input if name in makers]
            if missing := [index for index in needed if index not in order]:
                stack += missing
            else:
                order[stack.pop()] = None
    copies = [onnx.NodeProto.FromString(nodes[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(copies)
