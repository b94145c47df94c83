"""The DETR family: a set of queries, each with class logits and one box; nothing is suppressed.

Two members by what their logits mean. `detr` (Carion et al., End-to-End Object Detection with
Transformers, 2020) has a softmax with a last column for "no object". `rtdetr` (Zhao et al., DETRs
Beat YOLOs on Real-time Object Detection, 2023; D-FINE, RF-DETR, Deformable DETR) has a sigmoid a
class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from onnx import TensorProto

from contract import CANDIDATES
from families.base import IMAGENET_MEAN, IMAGENET_STD, Family, Match, Settings
from families.graph import Array, GraphBuilder
from families.grid import grid_strides
from families.raw import Output, RawModel

SETTINGS = Settings(resize="stretch", iou_threshold=1.0)
IMAGENET = replace(SETTINGS, mean=IMAGENET_MEAN, std=IMAGENET_STD)
COCO_IDS = 91  # columns of heads that number classes by COCO's ids, 0 to 90
MOST_QUERIES = 1000
MOST_OUTSIDE = 4.0  # images


def _pair(raw: RawModel) -> tuple[Output, Output] | None:
    """The logits [1, Q, C] and the normalised boxes [1, Q, 4], among other outputs."""
    outputs = raw.of_rank(3)
    boxes = _preferred([item for item in outputs if item.shape[2] == 4], "box", "dets")
    anchored = any("anchor" in output.name for output in raw.outputs)  # an SSD
    # In pixels they would be greater; D-FINE's boxes may reach out of the image.
    if anchored or boxes is None or np.abs(boxes.value).max() > MOST_OUTSIDE:
        return None
    others = [o for o in outputs if o is not boxes and o.shape[:2] == boxes.shape[:2]]
    logits = _preferred(others, "logits", "class", "label")
    return (logits, boxes) if logits is not None and logits.shape[2] > 1 else None


def _preferred(outputs: Sequence[Output], *words: str) -> Output | None:
    named = [item for item in outputs if any(word in item.name.lower() for word in words)]
    chosen = named if named else outputs
    return chosen[0] if len(chosen) == 1 else None


def _in_unit(values: Array) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def _add_boxes(graph: GraphBuilder, boxes: str, size_wh: tuple[int, int]) -> str:
    """Append [N, K, 4] x1 y1 x2 y2 in pixels out of normalised centre and size."""
    width_height = np.array(size_wh, np.float32)
    center, size = graph.split("box", boxes, [2, 2])
    center = graph.add("Mul", "box/center", center, width_height)
    return graph.corners(center, graph.add("Mul", "box/half", size, width_height / 2))


def _decode_softmax(
    graph: GraphBuilder, raw: RawModel, pair: tuple[Output, Output], columns: Sequence[int] | None
) -> None:
    """Append `candidates`: the best class of every query."""
    logits, boxes = pair
    _, queries, width = logits.shape
    kept = list(range(width - 1) if columns is None else columns)
    head = graph.cast("logits", logits.name, TensorProto.FLOAT)
    scores = graph.take("classes", graph.add("Softmax", "softmax", head, axis=2), 2, kept)
    count = min(CANDIDATES, queries)
    values, ids = graph.top_k("queries", graph.reduce_max("best", scores, 2), count)
    best = graph.add("ArgMax", "best/class", scores, axis=2, keepdims=0)
    class_ids = graph.add("GatherElements", "class_id", best, ids, axis=1)
    rows = graph.rows("rows/box", graph.cast("boxes/all", boxes.name, TensorProto.FLOAT), ids)
    graph.candidates(_add_boxes(graph, rows, raw.size_wh), values, class_ids, count)


def _decode_sigmoid(
    graph: GraphBuilder, raw: RawModel, logits: str, boxes: str, shape: tuple[int, int],
    columns: Sequence[int] | None, activate: bool,
) -> None:  # fmt: skip
    """Append `candidates`: the best (query, class) pairs."""
    queries, width = shape
    if columns is not None:
        logits, width = graph.take("classes", logits, 2, columns), len(columns)
    if queries > CANDIDATES:
        _, ids = graph.top_k("queries", graph.reduce_max("best", logits, 2), CANDIDATES)
        logits, boxes = graph.rows("rows/logits", logits, ids), graph.rows("rows/box", boxes, ids)
        queries = CANDIDATES
    values, class_ids, row_ids, count = graph.pairs(logits, queries, width)
    corners = _add_boxes(graph, graph.rows("chosen", boxes, row_ids), raw.size_wh)
    scores = graph.add("Sigmoid", "sigmoid", values) if activate else values
    graph.candidates(corners, scores, class_ids, count)


def _match_softmax(raw: RawModel, named: bool) -> Match | None:
    pair = _pair(raw)
    if pair is None or (not named and pair[0].shape[2] in (80, COCO_IDS)):
        return None
    _, queries, width = pair[0].shape

    def decode(graph: GraphBuilder, columns: Sequence[int] | None) -> None:
        _decode_softmax(graph, raw, pair, columns)

    return Match(
        reason=f"logits and boxes of {queries} queries; {width - 1} classes and no-object",
        classes=width - 1, settings=IMAGENET, decode=decode,
    )  # fmt: skip


def _match_sigmoid(raw: RawModel, named: bool) -> Match | None:
    pair = _pair(raw)
    if pair is None:
        return _match_joined(raw, named)
    logits, boxes = pair
    _, queries, width = logits.shape
    if not named and width == COCO_IDS + 1:
        return None
    # Trained logits are far below zero nearly everywhere.
    probabilities = _in_unit(logits.value)

    def decode(graph: GraphBuilder, columns: Sequence[int] | None) -> None:
        scores = graph.cast("logits", logits.name, TensorProto.FLOAT)
        corners = graph.cast("boxes/all", boxes.name, TensorProto.FLOAT)
        shape = (queries, width)
        _decode_sigmoid(graph, raw, scores, corners, shape, columns, not probabilities)

    what = "probabilities" if probabilities else "logits"
    return Match(
        reason=f"{what} of {width} classes and boxes of {queries} queries",
        classes=width, settings=IMAGENET if width == COCO_IDS else SETTINGS, decode=decode,
    )  # fmt: skip


def _match_joined(raw: RawModel, named: bool) -> Match | None:
    """The same in one output [N, Q, 4+C] with probabilities, as Ultralytics exports RT-DETR."""
    outputs = raw.of_rank(3)
    if len(raw.outputs) != 1 or len(outputs) != 1 or outputs[0].shape[2] < (5 if named else 7):
        return None
    _, queries, width = outputs[0].shape
    gridded = any(grid_strides(raw.size_wh, queries, count) for count in (1, 3))
    gridded = gridded or grid_strides(raw.size_wh, width, per_cell=1) is not None
    if queries > MOST_QUERIES or gridded or not _in_unit(outputs[0].value):
        return None

    def decode(graph: GraphBuilder, columns: Sequence[int] | None) -> None:
        head = graph.cast("head", outputs[0].name, TensorProto.FLOAT)
        boxes, scores = graph.split("head", head, [4, width - 4])
        _decode_sigmoid(graph, raw, scores, boxes, (queries, width - 4), columns, False)

    return Match(
        reason=f"boxes and probabilities of {width - 4} classes of {queries} queries in one output",
        classes=width - 4, settings=SETTINGS, decode=decode,
    )  # fmt: skip


DETR = Family(
    name="detr",
    models="DETR, YOLOS",
    outputs="two outputs [N, Q, C+1] (logits, the last of no object; softmax) and [N, Q, 4] (centre"
    " and size, 0 to 1)",
    match=_match_softmax,
)
RTDETR = Family(
    name="rtdetr",
    models="RT-DETR, D-FINE, RF-DETR, Deformable DETR",
    outputs="two outputs [N, Q, C] (logits; sigmoid) and [N, Q, 4] (centre and size, 0 to 1); or"
    " one [N, Q, 4+C] of boxes and probabilities",
    match=_match_sigmoid,
)
