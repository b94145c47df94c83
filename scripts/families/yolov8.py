"""YOLOv8, v9, 11 and the like: decoded boxes and class scores, attributes first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from contract import CANDIDATES
from families.base import Family, Match, Settings
from families.graph import GraphBuilder
from families.grid import grid_strides
from families.raw import Output, RawModel

SETTINGS = Settings(iou_threshold=0.7)


def _decode(graph: GraphBuilder, output: Output, columns: Sequence[int] | None) -> None:
    """Append `candidates` out of [N, 4+C, A]."""
    _, width, anchors = output.shape
    head = graph.cast("head", output.name, TensorProto.FLOAT)
    classes = list(range(4, width)) if columns is None else [4 + column for column in columns]
    kept = min(CANDIDATES, anchors)
    best = graph.reduce_max("best", graph.take("classes", head, 1, classes), 1)
    _, ids = graph.top_k("anchors", best, kept)
    # Of the chosen anchors all attributes, then rows: to transpose everything first costs more.
    at = graph.unsqueeze("rows/ids", ids, 1)
    at = graph.add("Expand", "rows/at", at, np.array([1, width, 1], np.int64))
    chosen = graph.add("GatherElements", "rows/attributes", head, at, axis=2)
    rows = graph.add("Transpose", "rows/best", chosen, perm=[0, 2, 1])
    scores = graph.take("scores", rows, 2, classes)
    values, class_ids, row_ids, count = graph.pairs(scores, kept, len(classes))
    boxes = graph.rows("chosen", graph.slice("rows/box", rows, 2, 0, 4), row_ids)
    center, size = graph.split("box", boxes, [2, 2])
    half = graph.add("Mul", "box/half", size, np.float32(0.5))
    graph.candidates(graph.corners(center, half), values, class_ids, count)


def match(raw: RawModel, named: bool) -> Match | None:
    """See `Family.match`."""
    outputs = raw.of_rank(3)
    if len(raw.outputs) != 1 or len(outputs) != 1:
        return None
    output = outputs[0]
    _, width, anchors = output.shape
    strides = grid_strides(raw.size_wh, anchors, per_cell=1)
    # A name given allows for other grids, as long as attributes come first.
    if width < 5 or (strides is None and not (named and width < anchors)):
        return None

    def decode(graph: GraphBuilder, columns: Sequence[int] | None) -> None:
        _decode(graph, output, columns)

    levels = f"cells of strides {', '.join(map(str, strides))}" if strides else "anchors"
    return Match(
        reason=f"attributes by {anchors} {levels}",
        classes=width - 4, settings=SETTINGS, decode=decode,
    )  # fmt: skip


FAMILY = Family(
    name="yolov8",
    models="YOLOv8, v9, 11, 12, YOLOv5u",
    outputs="one output [N, 4+C, A]: A the cells of strides 8, 16, 32; decoded box (centre and size"
    " in pixels), C class scores",
    match=match,
)
