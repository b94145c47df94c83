"""Models that end with their detections: YOLOv10, and DETRs exported with post-processing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from onnx import TensorProto

from contract import CANDIDATES
from families.base import Family, Match, Settings
from families.graph import GraphBuilder
from families.grid import holds_classes
from families.raw import RawModel

SETTINGS = Settings(iou_threshold=1.0)
MOST_ROWS = 1000


def _decode(
    graph: GraphBuilder, boxes: str, scores: str, class_ids: str, count: int,
    columns: Sequence[int] | None,
) -> None:  # fmt: skip
    """Append `candidates` out of [N, K, 4] boxes, [N, K] scores and [N, K] classes, all FP32."""
    if columns is not None:
        wanted = np.array(columns, np.float32).reshape(1, 1, -1)
        same = graph.add("Equal", "class/same", graph.unsqueeze("class/row", class_ids, 2), wanted)
        same = graph.cast("class/match", same, TensorProto.FLOAT)
        kept = graph.reduce_max("class/kept", same, 2)
        class_ids = graph.add("ArgMax", "class/index", same, axis=2, keepdims=0)
        class_ids = graph.cast("class/new", class_ids, TensorProto.FLOAT)
        scores = graph.add("Mul", "scores/kept", scores, kept)
        boxes = graph.add("Mul", "boxes/kept", boxes, graph.unsqueeze("kept", kept, 2))
    rows = min(CANDIDATES, count)
    values, ids = graph.top_k("rows/order", scores, rows)
    sorted_ids = graph.add("GatherElements", "class_id", class_ids, ids, axis=1)
    graph.candidates(graph.rows("chosen", boxes, ids), values, sorted_ids, rows)


def match(raw: RawModel, named: bool) -> Match | None:
    """See `Family.match`."""
    return _match_rows(raw, named) or _match_three(raw)


def _match_rows(raw: RawModel, named: bool) -> Match | None:
    outputs = raw.of_rank(3)
    if len(raw.outputs) != 1 or len(outputs) != 1 or outputs[0].shape[2] != 6:
        return None
    count = outputs[0].shape[1]
    if not named and (count > MOST_ROWS or not holds_classes(outputs[0])):
        return None

    def decode(graph: GraphBuilder, columns: Sequence[int] | None) -> None:
        rows = graph.cast("head", outputs[0].name, TensorProto.FLOAT)
        boxes, scores, class_ids = graph.split("head", rows, [4, 1, 1])
        flat = np.array([0, -1], np.int64)
        _decode(
            graph, boxes, graph.add("Reshape", "scores", scores, flat),
            graph.add("Reshape", "classes", class_ids, flat), count, columns,
        )  # fmt: skip

    return Match(
        reason=f"{count} rows of box, score and class", classes=None, settings=SETTINGS,
        decode=decode,
    )  # fmt: skip


def _match_three(raw: RawModel) -> Match | None:
    """Labels [N, K], boxes [N, K, 4] and scores [N, K], as RT-DETR's and D-FINE's own exports."""
    boxes = [item for item in raw.of_rank(3) if item.shape[2] == 4]
    scores = [item for item in raw.of_rank(2) if item.value.dtype.kind == "f"]
    labels = [item for item in raw.of_rank(2) if item.value.dtype.kind == "i"]
    if len(raw.outputs) != 3 or not len(boxes) == len(scores) == len(labels) == 1:
        return None
    count = boxes[0].shape[1]
    if not scores[0].shape[1] == labels[0].shape[1] == count:
        return None

    def decode(graph: GraphBuilder, columns: Sequence[int] | None) -> None:
        tensors = [
            graph.cast(f"{name}/float", item.name, TensorProto.FLOAT)
            for name, item in (("boxes", boxes[0]), ("scores", scores[0]), ("classes", labels[0]))
        ]
        _decode(graph, tensors[0], tensors[1], tensors[2], count, columns)

    return Match(
        reason=f"boxes, scores and classes of {count} detections", classes=None,
        settings=replace(SETTINGS, resize="stretch"), decode=decode,
    )  # fmt: skip


FAMILY = Family(
    name="end2end",
    models="YOLOv10, YOLO26, and RT-DETR or D-FINE exported with their post-processing",
    outputs="one output [N, K, 6] (x1 y1 x2 y2 in pixels, score, class); or three: labels [N, K],"
    " boxes [N, K, 4], scores [N, K]",
    match=match,
)
