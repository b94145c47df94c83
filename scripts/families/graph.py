"""What the detector families share: building the ends of an ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from contract import CANDIDATES

Array = npt.NDArray[Any]

PREFIX = "detserve/"  # of what the import adds, so that no name of the model's is taken twice


class DetectorImportError(ValueError):
    """The model is not what its family expects, or the result does not run."""


class GraphBuilder:
    """Appends nodes and constants to lists that become a graph.

    Attributes:
        opset: Version of ONNX's operators, 13 or newer.
        nodes: ONNX nodes in execution order.
        constants: Initialiser name to array.
    """

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def add(self, op: str, name: str, *inputs: str | npt.ArrayLike, **attributes: Any) -> str:
        """Append a node with one output, named like the node; arrays become constants.

        Returns:
            The name of the output: `name` with the prefix of what the import adds, but for
            `candidates`.
        """
        name = name if name == "candidates" else PREFIX + name
        names = [
            item if isinstance(item, str) else self.constant(f"{name}/{index}", np.asarray(item))
            for index, item in enumerate(inputs)
        ]
        self.nodes.append(helper.make_node(op, names, [name], name=name, **attributes))
        return name

    def constant(self, name: str, array: Array) -> str:
        """Add a constant and return its name."""
        self.constants[name] = array
        return name

    def cast(self, name: str, tensor: str, dtype: int) -> str:
        """Append a Cast to an ONNX element type."""
        return self.add("Cast", name, tensor, to=dtype)

    def unsqueeze(self, name: str, tensor: str, axis: int) -> str:
        """Append an axis of length one."""
        return self.add("Unsqueeze", name, tensor, np.array([axis], np.int64))

    def reduce_max(self, name: str, tensor: str, axis: int) -> str:
        """Append the maximum along an axis, which goes."""
        if self.opset < 18:
            return self.add("ReduceMax", name, tensor, axes=[axis], keepdims=0)
        return self.add("ReduceMax", name, tensor, np.array([axis], np.int64), keepdims=0)

    def slice(self, name: str, tensor: str, axis: int, start: int, stop: int) -> str:
        """Append the part from `start` to before `stop` of an axis."""
        bounds = (np.array([bound], np.int64) for bound in (start, stop, axis))
        return self.add("Slice", name, tensor, *bounds)

    def take(self, name: str, tensor: str, axis: int, columns: Sequence[int]) -> str:
        """Append the choice of some columns of an axis, as a slice where they are neighbours."""
        first, count = columns[0], len(columns)
        if tuple(columns) == tuple(range(first, first + count)):
            return self.slice(name, tensor, axis, first, first + count)
        return self.add("Gather", name, tensor, np.array(columns, np.int64), axis=axis)

    def rows(self, name: str, table: str, ids: str) -> str:
        """Append the choice of rows of every image: [N, A, D] and ids [N, K] give [N, K, D]."""
        return self.add(
            "GatherND", name, table, self.unsqueeze(f"{name}/ids", ids, 2), batch_dims=1
        )

    def top_k(self, name: str, scores: str, count: int) -> tuple[str, str]:
        """Append a TopK over the last axis, sorted; return the names of values and indices."""
        name = PREFIX + name
        outputs = [f"{name}/values", f"{name}/indices"]
        size = self.constant(f"{name}/k", np.array([count], np.int64))
        self.nodes.append(helper.make_node("TopK", [scores, size], outputs, name=name, axis=-1))
        return outputs[0], outputs[1]

    def split(self, name: str, tensor: str, sizes: Sequence[int]) -> list[str]:
        """Append a Split of the last axis into parts of the given sizes; return their names."""
        name = PREFIX + name
        outputs = [f"{name}/part{index}" for index in range(len(sizes))]
        parts = self.constant(f"{name}/sizes", np.array(sizes, np.int64))
        self.nodes.append(
            helper.make_node("Split", [tensor, parts], outputs, name=f"{name}/split", axis=-1)
        )
        return outputs

    def pairs(self, scores: str, rows: int, classes: int) -> tuple[str, str, str, int]:
        """Append the choice of the best (row, class) pairs of every image.

        Args:
            scores: Name of [N, rows, classes]; logits do too, for the sigmoid is monotonic.
            rows: How many rows there are.
            classes: How many classes.

        Returns:
            Names of [N, K] scores, class ids and row ids, by descending score; and K, 300 or as
            many pairs as there are.
        """
        count = min(CANDIDATES, rows * classes)
        flat = self.add("Reshape", "pairs/flat", scores, np.array([0, -1], np.int64))
        values, pairs = self.top_k("pairs", flat, count)
        width = np.int64(classes)
        class_ids = self.add("Mod", "class_id", pairs, width)
        return values, class_ids, self.add("Div", "row_id", pairs, width), count

    def corners(self, center: str, half: str) -> str:
        """Append [.., 4] x1 y1 x2 y2 out of centres and half sizes, both [.., 2]."""
        low, high = (
            self.add("Sub", "box/low", center, half),
            self.add("Add", "box/high", center, half),
        )
        return self.add("Concat", "boxes", low, high, axis=-1)

    def candidates(self, boxes: str, scores: str, class_ids: str, count: int) -> None:
        """Append the output: [N, K, 4] boxes and [N, K] scores and classes, padded to 300 rows."""
        score = self.unsqueeze("score", scores, 2)
        class_id = self.cast("class_id/float", class_ids, TensorProto.FLOAT)
        parts = [boxes, score, self.unsqueeze("class", class_id, 2)]
        if count == CANDIDATES:
            self.add("Concat", "candidates", *parts, axis=2)
            return
        rows = self.add("Concat", "rows", *parts, axis=2)
        pads = np.array([0, 0, 0, 0, CANDIDATES - count, 0], np.int64)
        self.add("Pad", "candidates", rows, pads)

    def detector(self, like: onnx.ModelProto, input_hw: tuple[int, int]) -> onnx.ModelProto:
        """Close the graph between `images` and `candidates`, which must have been added.

        Args:
            like: The model whose versions and functions the nodes need.
            input_hw: Height and width of `images`.
        """
        images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *input_hw, 3])
        return self.model(like, [images])

    def model(
        self, like: onnx.ModelProto, inputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        """Close the graph between some inputs and `candidates`."""
        candidates = helper.make_tensor_value_info(
            "candidates", TensorProto.FLOAT, ["N", CANDIDATES, 6]
        )
        nodes = self._needed()
        used = set().union(*(_reads(node) for node in nodes))
        initializers = [
            numpy_helper.from_array(array, name)
            for name, array in self.constants.items()
            if name in used
        ]
        graph = helper.make_graph(nodes, "detector", inputs, [candidates], initializers)
        return helper.make_model(
            graph, opset_imports=like.opset_import, functions=like.functions,
            ir_version=max(like.ir_version, 8), producer_name="detserve",
        )  # fmt: skip

    def _needed(self) -> list[onnx.NodeProto]:
        """The nodes that `candidates` depends on, in order."""
        wanted, nodes = {"candidates"}, []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                wanted |= _reads(node)
                nodes.append(node)
        return nodes[::-1]


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, also those of subgraphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs]:
                yield from nodes_of(inner)


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Give a tensor another name."""
    for item in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        if item.name == old:
            item.name = new
    for node in nodes_of(graph):
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new


def _reads(node: onnx.NodeProto) -> set[str]:
    """The tensors that a node reads, also those that only its subgraphs read."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            names.update(*(_reads(inner) for inner in graph.node))
    return names
