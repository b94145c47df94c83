"""Candidates of the detector -> detections: threshold, class-wise NMS, boxes back to the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from detserve.imaging import Geometry
from detserve.model_config import parse_parameters

__all__ = ["SelectionSettings", "box_iou", "non_maximum_suppression", "select_detections"]

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionSettings:
    """Which candidates become detections.

    Attributes:
        score_threshold: Lowest score that is kept, 0 to 1.
        iou_threshold: Highest overlap of two kept boxes of one class, 0 to 1.
        max_detections: How many to keep at the most.
    """

    score_threshold: float = 0.3
    iou_threshold: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        for name in ("score_threshold", "iou_threshold"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")
        if self.max_detections < 1:
            raise ValueError(f"max_detections must be at least 1, got {self.max_detections}")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> SelectionSettings:
        """Read the settings from the ``parameters`` of a Triton model configuration.

        Raises:
            ValueError: A parameter is unknown or its value does not fit; the message names it.
        """
        return cls(
            **parse_parameters(
                parameters, score_threshold=float, iou_threshold=float, max_detections=int
            )
        )

    def override(
        self,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> SelectionSettings:
        """The settings of one request: what it gives, and ours for the rest.

        Raises:
            ValueError: A value is out of its range.
        """
        given = {
            "score_threshold": score_threshold,
            "iou_threshold": iou_threshold,
            "max_detections": max_detections,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        return replace(self, **changes) if changes else self  # type: ignore[arg-type]


def box_iou(boxes_xyxy: Float32Array) -> Float32Array:
    """Intersection over union of every pair of boxes.

    Args:
        boxes_xyxy: float32 [N, 4]; every box has a positive width and height.

    Returns:
        float32 [N, N], symmetric.
    """
    left, top, right, bottom = (np.ascontiguousarray(column) for column in boxes_xyxy.T)
    width = np.minimum(right[:, None], right) - np.maximum(left[:, None], left)
    height = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    areas = (right - left) * (bottom - top)
    union = areas[:, None] + areas - intersection
    return np.asarray(intersection / union, np.float32)


def non_maximum_suppression(
    boxes_xyxy: Float32Array,
    classes: npt.NDArray[np.generic],
    iou_threshold: float,
) -> npt.NDArray[np.intp]:
    """Greedy class-wise non-maximum suppression.

    A box is dropped if a kept box of its class that stands before it overlaps it by more than
    ``iou_threshold``; an overlap of exactly the threshold is kept. The order is the caller's, so
    boxes of equal score are decided by their position.

    Which boxes greedy suppression keeps is the only fixed point of "kept = no kept box before me
    suppresses me"; it is reached by iterating on the whole matrix at once, in at most as many
    rounds as the longest chain of suppressions, commonly two or three (Cluster-NMS: Zheng et al.,
    "Enhancing Geometric Factors in Model Learning and Inference for Object Detection and Instance
    Segmentation", 2020).

    Args:
        boxes_xyxy: float32 [N, 4], by descending score; widths and heights positive.
        classes: [N], of any dtype that compares.
        iou_threshold: In [0, 1].

    Returns:
        The indices of the kept boxes, ascending.
    """
    suppresses = (box_iou(boxes_xyxy) > iou_threshold) & (classes[:, None] == classes)
    suppresses = np.triu(suppresses, k=1)
    kept = ~suppresses.any(axis=0)
    while True:
        settled = ~suppresses[kept].any(axis=0)
        if np.array_equal(settled, kept):
            return np.flatnonzero(kept)
        kept = settled


def select_detections(
    candidates: Float32Array, geometry: Geometry, settings: SelectionSettings
) -> tuple[Float32Array, Float32Array, npt.NDArray[np.int32]]:
    """Turn one image's candidates into detections.

    A candidate counts if its score reaches the threshold and its box, clipped to the image, has
    an area: boxes with a number that is not finite, with no positive width and height, or wholly
    in the padding are dropped. Suppression sees the boxes before clipping, as the detectors do.

    Args:
        candidates: float32 [K0, 6]: x1 y1 x2 y2 in pixels of the model's input, score, class;
            by descending score.
        geometry: How the image was fitted to the model's input.
        settings: Thresholds and the most detections wanted; the best are kept.

    Returns:
        float32 [N, 4] boxes x1 y1 x2 y2 in pixels of the image; float32 [N] scores, descending;
        int32 [N] classes.
    """
    rows = candidates[candidates[:, 4] >= np.float32(settings.score_threshold)]
    if len(rows) > 1:
        # Sorted by logit in the graph: rounding in the sigmoid can turn neighbours around.
        rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    boxes = geometry.to_image(rows[:, :4])
    extent = rows[:, 2:4] - rows[:, :2]
    usable = (extent > 0) & (extent < np.inf) & (boxes[:, 2:] > boxes[:, :2])
    if not usable.all():
        has_area = usable.all(axis=1)
        rows, boxes = rows[has_area], boxes[has_area]
    classes = rows[:, 5].astype(np.int32)
    if len(rows) > 1:
        kept = non_maximum_suppression(rows[:, :4], classes, settings.iou_threshold)
        kept = kept[: settings.max_detections]
        rows, boxes, classes = rows[kept], boxes[kept], classes[kept]
    return boxes, np.ascontiguousarray(rows[:, 4]), classes
