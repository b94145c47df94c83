"""What the detector families share: building the ends of an ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from contract import CANDIDATES


class DetectorImportError(ValueError):
    """The model is not what its family expects, or the result does not run."""


class GraphBuilder:
    """Appends nodes and constants to lists that become a graph.

    Attributes:
        nodes: ONNX nodes in execution order.
        constants: Initialiser name to array.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}

    def add(self, op: str, name: str, *inputs: str | npt.ArrayLike, **attributes: Any) -> str:
        """Append a node with one output, named like the node; arrays become constants."""
        names = [
            item if isinstance(item, str) else self.constant(f"{name}/{index}", np.asarray(item))
            for index, item in enumerate(inputs)
        ]
        self.nodes.append(helper.make_node(op, names, [name], name=name, **attributes))
        return name

    def constant(self, name: str, array: npt.NDArray[Any]) -> str:
        """Add a constant and return its name."""
        self.constants[name] = array
        return name

    def top_k(self, name: str, scores: str, count: int) -> tuple[str, str]:
        """Append a TopK over the last axis, sorted; return the names of values and indices."""
        outputs = [f"{name}/values", f"{name}/indices"]
        size = self.constant(f"{name}/k", np.array([count], np.int64))
        self.nodes.append(helper.make_node("TopK", [scores, size], outputs, name=name, axis=-1))
        return outputs[0], outputs[1]

    def split(self, name: str, tensor: str, parts: list[str]) -> list[str]:
        """Append a Split of the last axis into equal parts; return their names."""
        outputs = [f"{name}/{part}" for part in parts]
        self.nodes.append(
            helper.make_node("Split", [tensor], outputs, name=f"{name}/split", axis=-1)
        )
        return outputs

    def detector(self, input_hw: tuple[int, int], opset: int, ir_version: int) -> onnx.ModelProto:
        """Close the graph between `images` and `candidates`, which must have been added."""
        images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", *input_hw, 3])
        candidates = helper.make_tensor_value_info(
            "candidates", TensorProto.FLOAT, ["N", CANDIDATES, 6]
        )
        used = {name for node in self.nodes for name in node.input}
        initializers = [
            numpy_helper.from_array(array, name)
            for name, array in self.constants.items()
            if name in used
        ]
        graph = helper.make_graph(self.nodes, "detector", [images], [candidates], initializers)
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version,
            producer_name="detserve",
        )  # fmt: skip
