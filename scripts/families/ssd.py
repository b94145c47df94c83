"""SSD: box encodings against constant anchors, and class logits whose first column is background.

Liu et al., SSD: Single Shot MultiBox Detector, 2016. TensorFlow's (`ssd`) and torchvision's
(`ssd-torchvision`) differ in the order of the encodings, the anchors' unit, and the activation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto

from contract import CANDIDATES
from families.base import Family, Match, Settings
from families.graph import Array, DetectorImportError, GraphBuilder
from families.raw import Output, RawModel

# Both box coders scale the encodings of centres by 10 and those of sizes by 5.
_CENTER_SCALE, _SIZE_SCALE = 10.0, 5.0
_TX_TY_TW_TH = (1, 0, 3, 2)  # of TensorFlow's ty tx th tw
_LARGEST_GROWTH = np.float32(np.log(1000 / 16))  # torchvision's bound of the size's logarithm
_HALF = (127.5, 127.5, 127.5)  # pixels become -1 to 1
SETTINGS = Settings(mean=_HALF, std=_HALF, resize="stretch", iou_threshold=0.5)
SSDLITE_SETTINGS = replace(SETTINGS, iou_threshold=0.55)
# torchvision's VGG16 takes pixels as Caffe's did: only the mean is subtracted.
VGG_SETTINGS = replace(
    SETTINGS, mean=(123.0, 117.0, 104.0), std=(1.0, 1.0, 1.0), iou_threshold=0.45
)
VGG_ANCHORS = 8732  # of 300 x 300


@dataclass(frozen=True)
class _Outputs:
    boxes: Output
    logits: Output
    anchors: Array  # [A, 4]


def _outputs(raw: RawModel) -> _Outputs | None:
    anchors = [item for item in raw.outputs if "anchor" in item.name]
    others = [item for item in raw.outputs if item not in anchors]
    boxes = [item for item in others if item.shape[2:] == (4,)]
    if len(boxes) == 2:
        boxes = [item for item in boxes if "box" in item.name]
    logits = [item for item in others if item not in boxes]
    if not len(anchors) == len(boxes) == len(logits) == 1 or len(logits[0].shape) != 3:
        return None
    count = boxes[0].shape[1]
    fits = anchors[0].shape in ((1, count, 4), (count, 4)) and logits[0].shape[1] == count
    if not fits or logits[0].shape[2] < 2:
        return None
    return _Outputs(boxes[0], logits[0], anchors[0].value.reshape(-1, 4).astype(np.float64))


def _anchor_table(corners: Array) -> Array:
    """Tabulate anchors for the decoder.

    Args:
        corners: [A, 4] x1 y1 x2 y2 in pixels.

    Returns:
        Float32 [A, 6] in pixels: centre x y, width and height over the centre scale, half width
        and height.
    """
    low, high = corners[:, :2], corners[:, 2:]
    size = high - low
    table = [(low + high) / 2, size / _CENTER_SCALE, size / 2]
    return np.concatenate(table, axis=1, dtype=np.float32)


def _add_selection(
    graph: GraphBuilder, scores: str, anchors: int, classes: int
) -> tuple[str, str, str, int]:
    """Append the choice of the best (anchor, class) pairs.

    The K best pairs lie in the K anchors with the best maxima, so the choice among the 1917 x 80
    pairs is exact and looks at few of them.

    Returns:
        Names of [N, K] scores, class ids and anchor ids, by descending score, and K.
    """
    kept = min(CANDIDATES, anchors)
    _, ids = graph.top_k("anchors", graph.reduce_max("best", scores, 2), kept)
    rows = graph.rows("rows/best", scores, ids)
    values, class_ids, row_ids, count = graph.pairs(rows, kept, classes)
    anchor_ids = graph.add("GatherElements", "anchor_id", ids, row_ids, axis=1)
    return values, class_ids, anchor_ids, count


def _add_boxes(
    graph: GraphBuilder, encodings: str, anchors: str, table: Array, swap: bool, bounded: bool
) -> tuple[str, str]:
    """Append box decoding of the chosen anchors; return centres and half sizes, [N, K, 2]."""
    encoding = graph.rows("encoding", encodings, anchors)
    if swap:
        encoding = graph.take("encoding/xywh", encoding, 2, _TX_TY_TW_TH)
    table_name = graph.constant("detserve/anchor_table", table)
    anchor = graph.add("Gather", "anchor", table_name, anchors, axis=0)
    offset, growth = graph.split("encoding/parts", encoding, [2, 2])
    center, scale, half = graph.split("anchor/parts", anchor, [2, 2, 2])
    moved = graph.add("Add", "box/center", graph.add("Mul", "box/move", offset, scale), center)
    log_growth = graph.add("Mul", "box/log", growth, np.float32(1 / _SIZE_SCALE))
    if bounded:
        log_growth = graph.add("Min", "box/bounded", log_growth, _LARGEST_GROWTH)
    return moved, graph.add("Mul", "box/half", graph.add("Exp", "box/exp", log_growth), half)


def match(raw: RawModel, named: bool) -> Match | None:
    """See `Family.match`."""
    found = _outputs(raw)
    if found is None or (not named and found.anchors.max() > 2):
        return None
    _, count, width = found.logits.shape
    logits = found.logits.value
    if 0 <= logits.min() < logits.max() <= 1:
        raise DetectorImportError(
            f"output {found.logits.name!r} has probabilities: export the logits"
        )
    # TensorFlow's anchors are y1 x1 y2 x2 of an image of size one.
    table = _anchor_table(found.anchors[:, [1, 0, 3, 2]] * np.tile(raw.size_wh, 2))

    def decode(graph: GraphBuilder, columns: Sequence[int] | None) -> None:
        kept = [column + 1 for column in (range(width - 1) if columns is None else columns)]
        boxes = _head_convolutions(graph, found.boxes.name)
        classes = _head_convolutions(graph, found.logits.name)
        if boxes and classes:
            encodings = _add_head(graph, "encodings", boxes, _TX_TY_TW_TH, 4)
            logits = _add_head(graph, "logits", classes, kept, width)
        else:
            encodings = graph.cast("encodings", found.boxes.name, TensorProto.FLOAT)
            logits = graph.cast("logits/all", found.logits.name, TensorProto.FLOAT)
            logits = graph.take("logits", logits, 2, kept)
        # The sigmoid is monotonic: logits will do for the choice.
        values, class_ids, ids, rows = _add_selection(graph, logits, count, len(kept))
        swap = not (boxes and classes)
        center, half = _add_boxes(graph, encodings, ids, table, swap, bounded=False)
        scores = graph.add("Sigmoid", "sigmoid", values)
        graph.candidates(graph.corners(center, half), scores, class_ids, rows)

    return Match(
        reason=f"encodings, logits and {count} anchors from 0 to 1",
        classes=width - 1, settings=SETTINGS, decode=decode,
    )  # fmt: skip


def match_torchvision(raw: RawModel, named: bool) -> Match | None:
    """See `Family.match`."""
    found = _outputs(raw)
    if found is None or (not named and found.anchors.max() <= 2):
        return None
    _, count, width = found.logits.shape

    def decode(graph: GraphBuilder, columns: Sequence[int] | None) -> None:
        kept = [column + 1 for column in (range(width - 1) if columns is None else columns)]
        logits = graph.cast("logits", found.logits.name, TensorProto.FLOAT)
        scores = graph.take("scores", graph.add("Softmax", "softmax", logits, axis=2), 2, kept)
        values, class_ids, ids, rows = _add_selection(graph, scores, count, len(kept))
        encodings = graph.cast("encodings", found.boxes.name, TensorProto.FLOAT)
        table = _anchor_table(found.anchors)
        center, half = _add_boxes(graph, encodings, ids, table, swap=False, bounded=True)
        low, high = np.zeros(4, np.float32), np.tile(raw.size_wh, 2).astype(np.float32)
        boxes = graph.add("Max", "boxes/low", graph.corners(center, half), low)
        boxes = graph.add("Min", "boxes/inside", boxes, high)
        graph.candidates(boxes, values, class_ids, rows)

    return Match(
        reason=f"encodings, logits and {count} anchors in pixels",
        classes=width - 1, decode=decode,
        settings=VGG_SETTINGS if count == VGG_ANCHORS else SSDLITE_SETTINGS,
    )  # fmt: skip


def _head_convolutions(graph: GraphBuilder, output: str) -> list[onnx.NodeProto]:
    """The convolutions behind an output, if there is nothing but a change of layout between."""
    producers = {name: node for node in graph.nodes for name in node.output}
    readers = [name for node in graph.nodes for name in node.input]

    def behind(name: str, *ops: str) -> onnx.NodeProto | None:
        node = None
        for op in ops:
            node = producers.get(name)
            if op == "Squeeze" and node is not None and node.op_type != op:
                continue  # only some heads have an axis too many
            if node is None or node.op_type != op:
                return None
            name = node.input[0]
        return node

    concat = behind(output, "Identity", "Squeeze", "Concat")
    if concat is None:
        return []
    convs = [behind(name, "Reshape", "Transpose", "Conv") for name in concat.input]
    found = [
        conv for conv in convs
        if conv is not None and readers.count(conv.output[0]) == 1
        and all(name in graph.constants and readers.count(name) == 1 for name in conv.input[1:])
    ]  # fmt: skip
    return found if len(found) == len(convs) else []


def _select_columns(parameter: Array, columns: Sequence[int], width: int) -> Array:
    """Keep some columns of a head's output channels, which are [anchors, width]."""
    kept = parameter.reshape(-1, width, *parameter.shape[1:])[:, list(columns)]
    return np.ascontiguousarray(kept.reshape(-1, *parameter.shape[1:]))


def _add_head(
    graph: GraphBuilder, name: str, convs: list[onnx.NodeProto], columns: Sequence[int], width: int
) -> str:
    """Append the heads' levels as one [N, A, columns] tensor.

    The convolutions compute the chosen columns alone and in their order, so choosing costs
    nothing at run time.
    """
    levels = []
    for level, conv in enumerate(convs):
        for parameter in conv.input[1:]:
            chosen = _select_columns(graph.constants[parameter], columns, width)
            graph.constants[parameter] = chosen
        # ONNX Runtime merges this transposition with leaving its blocked layout.
        nhwc = graph.add("Transpose", f"{name}/{level}/nhwc", conv.output[0], perm=[0, 2, 3, 1])
        shape = np.array([0, -1, len(columns)], np.int64)
        levels.append(graph.add("Reshape", f"{name}/{level}", nhwc, shape))
    return graph.add("Concat", name, *levels, axis=1)


FAMILY = Family(
    name="ssd",
    models="SSD and SSDLite of TensorFlow's Object Detection",
    outputs="three outputs box_encodings [N, A, 4] (ty tx th tw), class_logits [N, A, C+1] (the"
    " first of background; sigmoid), anchors [1, A, 4] (y1 x1 y2 x2, 0 to 1)",
    match=match,
)
TORCHVISION = Family(
    name="ssd-torchvision",
    models="SSD and SSDLite of torchvision",
    outputs="three outputs bbox_regression [N, A, 4] (dx dy dw dh), cls_logits [N, A, C+1] (the"
    " first of background; softmax), anchors [A, 4] (x1 y1 x2 y2 in pixels)",
    match=match_torchvision,
)
