"""YOLOv5 and YOLOv7: three anchors for every cell, decoded in the graph, objectness and classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from contract import CANDIDATES
from families.base import Family, Match, Settings
from families.graph import Array, GraphBuilder
from families.grid import grid_strides, holds_classes
from families.raw import Output, RawModel

SETTINGS = Settings(iou_threshold=0.45)


def add_objectness_head(
    graph: GraphBuilder, output: Output, columns: Sequence[int] | None, cells: Array | None
) -> None:
    """Append `candidates` out of rows of box, objectness and class scores.

    The best of an anchor's products is the product with its best class, so the choice of anchors
    looks at the maxima and is exact; the products of the chosen ones alone are computed.

    Args:
        graph: Where to.
        output: [N, A, 5+C]: centre x y, width height, objectness, class scores.
        columns: Class columns that are kept, in their order; None keeps all.
        cells: For boxes that are not decoded, float32 [A, 4] as `yolox.grid_table` makes it.
    """
    _, anchors, width = output.shape
    head = graph.cast("head", output.name, TensorProto.FLOAT)
    classes = range(5, width) if columns is None else [5 + column for column in columns]
    kept = min(CANDIDATES, anchors)
    objectness = graph.slice("objectness", head, 2, 4, 5)
    best = graph.reduce_max("best/class", graph.take("classes", head, 2, list(classes)), 2)
    flat = graph.add("Reshape", "objectness/flat", objectness, np.array([0, -1], np.int64))
    _, ids = graph.top_k("anchors", graph.add("Mul", "best", best, flat), kept)
    rows = graph.rows("rows/best", head, ids)
    scores = graph.add(
        "Mul", "scores",
        graph.take("rows/classes", rows, 2, list(classes)),
        graph.slice("rows/objectness", rows, 2, 4, 5),
    )  # fmt: skip
    values, class_ids, row_ids, count = graph.pairs(scores, kept, len(classes))
    chosen = graph.rows("chosen", graph.slice("rows/box", rows, 2, 0, 4), row_ids)
    center, size = graph.split("box", chosen, [2, 2])
    if cells is None:
        half = graph.add("Mul", "box/half", size, np.float32(0.5))
    else:
        anchor_ids = graph.add("GatherElements", "anchor_id", ids, row_ids, axis=1)
        table = graph.constant("detserve/cells", cells)
        cell = graph.add("Gather", "cell", table, anchor_ids, axis=0)
        corner, stride, half_stride = graph.split("cell", cell, [2, 1, 1])
        center = graph.add(
            "Mul", "box/center", graph.add("Add", "box/cell", center, corner), stride
        )
        half = graph.add("Mul", "box/half", graph.add("Exp", "box/exp", size), half_stride)
    graph.candidates(graph.corners(center, half), values, class_ids, count)


def match(raw: RawModel, named: bool) -> Match | None:
    """See `Family.match`."""
    outputs = raw.of_rank(3)
    # Older exports also give the three heads, [N, 3, H, W, 5+C], which the rows are made of.
    if len(outputs) != 1 or len(outputs) + len(raw.of_rank(5)) != len(raw.outputs):
        return None
    _, anchors, width = outputs[0].shape
    strides = grid_strides(raw.size_wh, anchors, per_cell=3)
    if width < 6 or (not named and (strides is None or holds_classes(outputs[0]))):
        return None

    def decode(graph: GraphBuilder, columns: Sequence[int] | None) -> None:
        add_objectness_head(graph, outputs[0], columns, None)

    levels = f"for every cell of strides {', '.join(map(str, strides))}" if strides else "in all"
    return Match(
        reason=f"{'three anchors' if strides else f'{anchors} anchors'} {levels}",
        classes=width - 5, settings=SETTINGS, decode=decode,
    )  # fmt: skip


FAMILY = Family(
    name="yolov5",
    models="YOLOv5, YOLOv7",
    outputs="one output [N, A, 5+C]: A three times the cells of strides 8, 16, 32; decoded box"
    " (centre and size in pixels), objectness, C class scores",
    match=match,
)
