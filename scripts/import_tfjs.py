"""Import a TensorFlow.js GraphModel as a raw ONNX detector.

The graph is cut at the normalised image tensor and at the raw head outputs: what lies before and
behind (resizing loops, box decoding) belongs to the pipeline. What is imported is made for
inference runtimes: NCHW, batch norms and biases folded into the convolutions, explicit
(asymmetric) pads, `Clip` directly behind `Conv`, dynamic batch.

The importer is strict: an op, attribute or use of one that it does not know raises
`UnsupportedNodeError`, which names the node.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tfjs_format import TfjsImportError, load_graph
from tfjs_ops import GraphImporter, Tensor

OPSET = 17
IR_VERSION = 8  # the IR of opset 17: readable by every runtime that reads the opset


@dataclass(frozen=True)
class Cut:
    """Where to cut a GraphModel, and what to call the ends.

    Attributes:
        input_node: Node whose output becomes the model's input.
        input_name: Name of that input in the ONNX model.
        input_hwc: Its height, width and channels.
        outputs: TensorFlow node name to ONNX output name.
        constants: Weight name to the name of a constant ONNX output (the anchors).
    """

    input_node: str
    input_name: str
    input_hwc: tuple[int, int, int]
    outputs: Mapping[str, str]
    constants: Mapping[str, str] = field(default_factory=dict)


# box_encodings [N, A, 4] as ty tx th tw; class_logits [N, A, 1 + classes], background first;
# anchors [1, A, 4] as y1 x1 y2 x2, normalised to [0, 1].
COCO_SSD_CUT = Cut(
    input_node="Preprocessor/sub",
    input_name="image",
    input_hwc=(300, 300, 3),
    outputs={"Squeeze": "box_encodings", "concat_1": "class_logits"},
    constants={"Postprocessor/ExpandDims": "anchors"},
)


def import_graph(directory: Path, cut: Cut) -> onnx.ModelProto:
    """Import a TensorFlow.js GraphModel.

    Args:
        directory: Folder of `model.json` and its weight shards.
        cut: Which part of the graph to import.

    Returns:
        A model with a float32 [N, C, H, W] input, the outputs of the cut in float32, and its
        constants as outputs. The same input gives the same bytes.

    Raises:
        TfjsImportError: The graph cannot be read, or holds something unknown.
    """
    nodes, weights = load_graph(directory)
    image = Tensor(cut.input_name, cut.input_hwc, nchw=True)
    importer = GraphImporter(nodes, weights, {cut.input_node: image}, cut.outputs)
    outputs: list[onnx.ValueInfoProto] = []
    for node_name, name in cut.outputs.items():
        value = importer.value(node_name)
        if not isinstance(value, Tensor):
            raise TfjsImportError(f"output {node_name!r} is a constant")
        shape = value.shape if not value.nchw else (value.shape[2], *value.shape[:2])
        importer.onnx_nodes.append(helper.make_node("Identity", [value.name], [name], name=name))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape]))
    for weight_name, name in cut.constants.items():
        if weight_name not in weights:
            raise TfjsImportError(f"there is no weight {weight_name!r}")
        array = weights[weight_name]
        source = importer.constant(weight_name, array)
        importer.onnx_nodes.append(helper.make_node("Identity", [source], [name], name=name))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
    height, width, channels = cut.input_hwc
    graph = helper.make_graph(
        importer.onnx_nodes,
        "raw_detector",
        [
            helper.make_tensor_value_info(
                cut.input_name, TensorProto.FLOAT, ["N", channels, height, width]
            )
        ],
        outputs,
        [
            numpy_helper.from_array(
                array.astype(np.int64 if array.dtype.kind == "i" else np.float32), name
            )
            for name, array in importer.parameters.items()
        ],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
        producer_name="detserve",
    )  # fmt: skip
    onnx.checker.check_model(model, full_check=True)
    return model


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description="Import a TensorFlow.js SSD as raw ONNX.")
    parser.add_argument("directory", type=Path, help="folder of model.json and its shards")
    parser.add_argument("-o", "--output", type=Path, required=True, help="ONNX file to write")
    args = parser.parse_args(argv)
    try:
        model = import_graph(args.directory, COCO_SSD_CUT)
    except TfjsImportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_bytes(model.SerializeToString(deterministic=True))
    print(f"wrote {args.output}: {len(model.graph.node)} nodes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
