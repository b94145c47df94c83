"""Small models for the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["write_detector"]

CANDIDATES = np.array(
    [[10, 10, 60, 60, 0.9, 1], [12, 12, 60, 60, 0.8, 1], [20, 20, 90, 90, 0.2, 0]], np.float32
)


def write_detector(
    path: Path, size: int = 96, rows: npt.NDArray[np.float32] = CANDIDATES, **names: str
) -> Path:
    """A detector that finds the same things in every image."""
    nodes = [
        helper.make_node("Shape", [names.get("images", "images")], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["batch"]),
        helper.make_node("Concat", ["batch", "ones"], ["repeats"], axis=0),
        helper.make_node("Tile", ["rows", "repeats"], [names.get("candidates", "candidates")]),
    ]
    constants = {
        "zero": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "ones": np.array([1, 1], np.int64),
        "rows": rows[None],
    }
    graph = helper.make_graph(
        nodes,
        "detector",
        [
            helper.make_tensor_value_info(
                names.get("images", "images"), TensorProto.UINT8, ["N", size, size, 3]
            )
        ],
        [
            helper.make_tensor_value_info(
                names.get("candidates", "candidates"), TensorProto.FLOAT, ["N", len(rows), 6]
            )
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path
