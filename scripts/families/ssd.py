"""The SSD family: box encodings against constant anchors, and one sigmoid a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

import coco
from contract import CANDIDATES
from families.graph import DetectorImportError, GraphBuilder

Array = npt.NDArray[Any]

# Heads trained on COCO have 91 columns, background first and the categories by their ids.
COCO_COLUMNS = coco.CATEGORY_IDS
# TensorFlow's box coder: encodings are ty tx th tw, scaled by 10 10 5 5.
_CENTER_SCALE, _SIZE_SCALE = 10.0, 5.0
_TX_TY_TW_TH = (1, 0, 3, 2)
_LAST = np.array([2], np.int64)  # the last axis of [N, K, C]


class _Heads:
    """The convolutions behind one output, and the names of the nodes between."""

    def __init__(self, model: onnx.ModelProto, output: str) -> None:
        self._producers = {name: node for node in model.graph.node for name in node.output}
        self.behind: set[str] = set()
        concat = self._follow(output, "Identity", "Squeeze", "Concat")
        self.behind.add(concat.name)
        self.convolutions = [
            self._follow(name, "Reshape", "Transpose", "Conv") for name in concat.input
        ]

    def _follow(self, name: str, *ops: str) -> onnx.NodeProto:
        """Walk backwards from a tensor along `ops` and return the last one's node."""
        for op in ops:
            node = self._producers.get(name)
            if op == "Squeeze" and node is not None and node.op_type != op:
                continue  # only some heads have an axis too many
            if node is None or node.op_type != op:
                found = "nothing" if node is None else node.op_type
                raise DetectorImportError(f"{name!r}: expected {op} before it, found {found}")
            if op == ops[-1]:
                break
            self.behind.add(node.name)
            name = node.input[0]
        return node


def _dims(model: onnx.ModelProto, name: str) -> list[int]:
    """Return the shape of an input or output, 0 where it is dynamic."""
    for info in [*model.graph.input, *model.graph.output]:
        if info.name == name:
            return [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    raise DetectorImportError(f"the model has no output {name!r}")


def _select_columns(parameter: Array, columns: Sequence[int], width: int) -> Array:
    """Keep some columns of a head's output channels, which are [anchors, width]."""
    kept = parameter.reshape(-1, width, *parameter.shape[1:])[:, list(columns)]
    return np.ascontiguousarray(kept.reshape(-1, *parameter.shape[1:]))


def _anchor_table(anchors_yxyx: Array, size_wh: tuple[int, int]) -> Array:
    """Tabulate anchors for the decoder.

    Args:
        anchors_yxyx: [A, 4] corners, normalised to [0, 1].
        size_wh: Width and height of the model's input in pixels.

    Returns:
        Float32 [A, 6] in pixels: centre x y, width and height over the centre scale, half width
        and height.
    """
    corners = anchors_yxyx.astype(np.float64)[:, [1, 0, 3, 2]] * np.tile(size_wh, 2)
    low, high = corners[:, :2], corners[:, 2:]
    size = high - low
    table = [(low + high) / 2, size / _CENTER_SCALE, size / 2]
    return np.concatenate(table, axis=1, dtype=np.float32)


def _add_input(graph: GraphBuilder, conv: onnx.NodeProto, image: str, dims: list[int]) -> None:
    """Append the path from uint8 pixels to the first convolution, and adapt that."""
    _, channels, height, width = dims
    pixels = graph.add("Cast", "pixels", "images", to=onnx.TensorProto.FLOAT)
    # A row of interleaved pixels is one channel of width 3W: the first convolution reads it with
    # a kernel, stride and pads three times as wide, and nothing is transposed to NCHW.
    rows = np.array([0, 1, height, width * channels], np.int64)
    centered = graph.add("Reshape", "pixels/rows", pixels, rows)
    # x / 127.5 - 1 = (x - 127.5) / 127.5: the weights divide. The offset cannot move into the
    # bias, for the zeros that pad the image would then no longer be zeros.
    graph.add("Sub", image, centered, np.float32(127.5))
    weight = graph.constants[conv.input[1]]  # [out, in, kh, kw]
    interleaved = weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], 1, weight.shape[2], -1)
    graph.constants[conv.input[1]] = np.ascontiguousarray(interleaved / np.float32(127.5))
    for attribute in conv.attribute:
        if attribute.name in ("strides", "kernel_shape"):
            attribute.ints[1] *= channels
        elif attribute.name == "pads":
            attribute.ints[1] *= channels
            attribute.ints[3] *= channels


def _add_heads(
    graph: GraphBuilder, name: str, heads: _Heads, columns: Sequence[int], width: int
) -> str:
    """Append the heads' levels as one [N, A, columns] tensor.

    The convolutions compute the chosen columns alone and in their order, so choosing costs
    nothing at run time.
    """
    levels = []
    for level, conv in enumerate(heads.convolutions):
        for parameter in conv.input[1:]:
            chosen = _select_columns(graph.constants[parameter], columns, width)
            graph.constants[parameter] = chosen
        # ONNX Runtime merges this transposition with leaving its blocked layout.
        nhwc = graph.add("Transpose", f"{name}/{level}/nhwc", conv.output[0], perm=[0, 2, 3, 1])
        shape = np.array([0, -1, len(columns)], np.int64)
        levels.append(graph.add("Reshape", f"{name}/{level}", nhwc, shape))
    return graph.add("Concat", name, *levels, axis=1)


def _add_selection(graph: GraphBuilder, logits: str, classes: int) -> tuple[str, str, str]:
    """Append the choice of the best (anchor, class) pairs.

    The K best pairs lie in the K anchors with the best maxima, so the choice among the 1917 x 80
    pairs is exact and looks at few of them. The sigmoid is monotonic: logits will do.

    Returns:
        Names of [N, K] logits, class ids and anchor ids, by descending logit.
    """
    best = graph.add("ReduceMax", "best", logits, axes=[2], keepdims=0)
    _, anchors = graph.top_k("anchors", best, CANDIDATES)
    rows_at = graph.add("Unsqueeze", "rows/index", anchors, _LAST)
    rows = graph.add("GatherND", "rows", logits, rows_at, batch_dims=1)
    flat = graph.add("Flatten", "rows/flat", rows, axis=1)
    values, pairs = graph.top_k("pairs", flat, CANDIDATES)
    width = np.int64(classes)
    class_ids = graph.add("Mod", "class_id", pairs, width)
    row_ids = graph.add("Div", "row_id", pairs, width)
    return values, class_ids, graph.add("GatherElements", "anchor_id", anchors, row_ids, axis=1)


def _add_boxes(graph: GraphBuilder, encodings: str, anchors: str, table: Array) -> tuple[str, str]:
    """Append box decoding of the chosen anchors; return the names of [N, K, 2] x1 y1 and x2 y2."""
    encodings_at = graph.add("Unsqueeze", "encoding/index", anchors, _LAST)
    encoding = graph.add("GatherND", "encoding", encodings, encodings_at, batch_dims=1)
    anchor = graph.add("Gather", "anchor", graph.constant("anchor_table", table), anchors, axis=0)
    offset, growth = graph.split("encoding", encoding, ["offset", "growth"])
    center, scale, half = graph.split("anchor", anchor, ["center", "scale", "half"])
    moved = graph.add("Add", "box/center", graph.add("Mul", "box/move", offset, scale), center)
    log_growth = graph.add("Mul", "box/log", growth, np.float32(1 / _SIZE_SCALE))
    grown = graph.add("Mul", "box/half", graph.add("Exp", "box/exp", log_growth), half)
    return graph.add("Sub", "box/low", moved, grown), graph.add("Add", "box/high", moved, grown)


def fold(raw: onnx.ModelProto) -> onnx.ModelProto:
    """Fold normalisation, class map, top-k and box decoding into a raw SSD.

    Args:
        raw: Model with outputs `box_encodings` [N, A, 4] (ty tx th tw), `class_logits`
            [N, A, C] (column 0 is background) and `anchors` [1, A, 4] (y1 x1 y2 x2 in [0, 1]),
            as `import_tfjs` makes it.

    Returns:
        A detector with the pipeline's contract. Scores are sigmoids; one anchor may give
        candidates of several classes.

    Raises:
        DetectorImportError: The graph is not such a one.
    """
    model = onnx.ModelProto()
    model.CopyFrom(raw)
    image = model.graph.input[0].name
    dims, width = _dims(model, image), _dims(model, "class_logits")[2]
    columns = COCO_COLUMNS if width == 91 else tuple(range(1, width))
    boxes, classes = _Heads(model, "box_encodings"), _Heads(model, "class_logits")
    graph = GraphBuilder()
    graph.constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    count = _dims(model, "anchors")[1]
    source = next(node for node in model.graph.node if "anchors" in node.output)
    table = _anchor_table(graph.constants[source.input[0]].reshape(-1, 4), (dims[3], dims[2]))
    if count < CANDIDATES:
        raise DetectorImportError(f"{count} anchors are too few for {CANDIDATES} candidates")
    readers = [node for node in model.graph.node if image in node.input]
    if [node.op_type for node in readers] != ["Conv"]:
        raise DetectorImportError(f"{image!r} must be read by one convolution alone")

    _add_input(graph, readers[0], image, dims)
    dropped = boxes.behind | classes.behind | {source.name}
    graph.nodes += [node for node in model.graph.node if node.name not in dropped]
    encodings = _add_heads(graph, "encodings", boxes, _TX_TY_TW_TH, 4)
    logits = _add_heads(graph, "logits", classes, columns, width)
    values, class_ids, anchors = _add_selection(graph, logits, len(columns))
    low, high = _add_boxes(graph, encodings, anchors, table)
    score = graph.add("Unsqueeze", "score", graph.add("Sigmoid", "sigmoid", values), _LAST)
    class_id = graph.add("Cast", "class_id/float", class_ids, to=onnx.TensorProto.FLOAT)
    class_id = graph.add("Unsqueeze", "class", class_id, _LAST)
    graph.add("Concat", "candidates", low, high, score, class_id, axis=2)
    return graph.detector((dims[2], dims[3]), model.opset_import[0].version, model.ir_version)
