"""The grids that anchors lie on: what tells one YOLO's outputs from another's."""

from __future__ import annotations

import math

import numpy as np

from families.raw import Output

# Of the feature maps that heads sit on: P3 to P5 mostly, with P2 or P6 in variants.
STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))


def _cells(size_wh: tuple[int, int], strides: tuple[int, ...]) -> int:
    """How many cells the grids of those strides have; 0 if the size is no multiple of one."""
    if any(side % stride for side in size_wh for stride in strides):
        return 0
    return sum(math.prod(side // stride for side in size_wh) for stride in strides)


def grid_strides(size_wh: tuple[int, int], anchors: int, per_cell: int) -> tuple[int, ...] | None:
    """The strides whose cells give that many anchors.

    Args:
        size_wh: Width and height of the input in pixels.
        anchors: How many anchors there are.
        per_cell: How many of them each cell has.

    Returns:
        The strides in pixels; None if no usual ones do.
    """
    return next((s for s in STRIDES if _cells(size_wh, s) * per_cell == anchors), None)


def holds_classes(output: Output) -> bool:
    """Whether the last of six columns, [1, K, 6], holds whole numbers: classes and no scores."""
    return output.shape[2] == 6 and bool((np.mod(output.value[..., 5], 1) == 0).all())
