"""YOLOX: one anchor for every cell, objectness and class scores.

Ge et al., YOLOX: Exceeding YOLO Series in 2021, 2021. Boxes are offsets in cells and logarithms
of sizes in strides, unless the model was exported with them decoded (`decode_in_inference`, and
YOLOv6 always): a run tells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from families.base import Family, Match, Settings
from families.graph import Array, GraphBuilder
from families.grid import grid_strides, holds_classes
from families.raw import RawModel
from families.yolov5 import add_objectness_head

SETTINGS = Settings(
    order="bgr", std=(1, 1, 1), anchor="top-left", pad_value=114, iou_threshold=0.65
)
YOLOV6_SETTINGS = Settings(iou_threshold=0.45)


def grid_table(size_wh: tuple[int, int], strides: Sequence[int]) -> Array:
    """Tabulate the cells: float32 [A, 4] of x, y (cells), stride, half a stride (pixels)."""
    parts = []
    for stride in strides:
        width, height = size_wh[0] // stride, size_wh[1] // stride
        y, x = np.divmod(np.arange(width * height), width)
        parts.append(np.column_stack([x, y, np.full_like(x, stride), np.full(x.shape, stride / 2)]))
    table: Array = np.concatenate(parts, dtype=np.float32)
    return table


def is_decoded(rows: Array, size_wh: tuple[int, int], strides: Sequence[int]) -> bool:
    """Whether the boxes [A, 2+] of a run lie where their cells are.

    A centre is seldom further from its cell than a few cells: decoded ones follow the cells across
    the image, the others stay near zero everywhere.
    """
    table = grid_table(size_wh, strides)
    cells = (table[:, :2] + 0.5) * table[:, 2:3]
    away = np.abs(rows[:, :2] - cells).mean()
    return bool(away < np.abs(rows[:, :2] / table[:, 2:3]).mean() and away < cells.mean() / 2)


def match(raw: RawModel, _named: bool) -> Match | None:
    """See `Family.match`."""
    outputs = raw.of_rank(3)
    if len(raw.outputs) != 1 or len(outputs) != 1:
        return None
    _, anchors, width = outputs[0].shape
    strides = grid_strides(raw.size_wh, anchors, per_cell=1)
    if strides is None or width < 6 or holds_classes(outputs[0]):
        return None
    decoded = is_decoded(outputs[0].value[0].astype(np.float32), raw.size_wh, strides)

    def decode(graph: GraphBuilder, columns: Sequence[int] | None) -> None:
        table = None if decoded else grid_table(raw.size_wh, strides)
        add_objectness_head(graph, outputs[0], columns, table)

    # YOLOv6 has the same rows, and an objectness of one everywhere.
    yolov6 = bool((outputs[0].value[..., 4] == 1).all())
    levels = ", ".join(map(str, strides))
    return Match(
        reason=f"one anchor for every cell of strides {levels}; boxes"
        f" {'decoded' if decoded else 'not decoded'} in the graph"
        + ("; objectness is one everywhere, as YOLOv6 has it" if yolov6 else ""),
        classes=width - 5, settings=YOLOV6_SETTINGS if yolov6 else SETTINGS, decode=decode,
    )  # fmt: skip


FAMILY = Family(
    name="yolox",
    models="YOLOX, YOLOv6",
    outputs="one output [N, A, 5+C]: A the cells of strides 8, 16, 32 (one anchor a cell); box,"
    " objectness, C class scores",
    match=match,
)
