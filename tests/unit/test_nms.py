"""Class-wise suppression against an independent greedy implementation, and its edge cases."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from detserve.imaging import Geometry
from detserve.nms import SelectionSettings, box_iou, non_maximum_suppression, select_detections

IDENTITY = Geometry(np.array((1, 1, 0, 0, 300, 300), np.float32))
Array = npt.NDArray[Any]


def greedy_reference(boxes: Array, classes: Array, threshold: float) -> list[int]:
    """The textbook loop, in Python floats."""

    def iou(a: list[float], b: list[float]) -> float:
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        shared = width * height
        both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        return shared / (both - shared)

    rows = boxes.tolist()
    kept: list[int] = []
    for i, row in enumerate(rows):
        if all(classes[j] != classes[i] or iou(rows[j], row) <= threshold for j in kept):
            kept.append(i)
    return kept


@st.composite
def boxes_and_classes(draw: st.DrawFn) -> tuple[Array, Array]:
    # Whole numbers make float32 and Python agree on every overlap, ties included.
    count = draw(st.integers(0, 40))
    corners = draw(hnp.arrays(np.int32, (count, 2), elements=st.integers(0, 30)))
    sizes = draw(hnp.arrays(np.int32, (count, 2), elements=st.integers(1, 20)))
    classes = draw(hnp.arrays(np.int32, count, elements=st.integers(0, 2)))
    return np.hstack([corners, corners + sizes]).astype(np.float32), classes


@given(boxes_and_classes(), st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.65, 1.0]))
@settings(max_examples=400, deadline=None)
def test_matches_the_greedy_loop(case: tuple[Array, Array], threshold: float) -> None:
    boxes, classes = case
    assert non_maximum_suppression(boxes, classes, threshold).tolist() == greedy_reference(
        boxes, classes, threshold
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_matches_opencv(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 200, (300, 2))
    boxes = np.hstack([corners, corners + rng.uniform(5, 80, (300, 2))]).astype(np.float32)
    scores = np.sort(rng.uniform(0.1, 1, 300).astype(np.float32))[::-1]
    classes = rng.integers(0, 3, 300)
    boxes_xywh = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    theirs = cv2.dnn.NMSBoxesBatched(
        boxes_xywh.tolist(), scores.tolist(), classes.tolist(), 0.0, threshold
    )
    ours = non_maximum_suppression(boxes, classes, threshold)
    assert ours.tolist() == sorted(np.asarray(theirs).tolist())


def test_long_chain_of_suppressions() -> None:
    # Each box overlaps only the next one: every other box stays.
    left = np.arange(0, 400, 4, dtype=np.float32)
    boxes = np.stack([left, np.zeros(100), left + 9, np.full(100, 9)], axis=1).astype(np.float32)
    kept = non_maximum_suppression(boxes, np.zeros(100), 0.3)
    assert kept.tolist() == list(range(0, 100, 2))


def test_an_overlap_of_exactly_the_threshold_is_kept() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)
    assert box_iou(boxes)[0, 1] == 0.5
    assert len(non_maximum_suppression(boxes, np.zeros(2), 0.5)) == 2
    assert len(non_maximum_suppression(boxes, np.zeros(2), 0.49)) == 1


def candidates(*rows: tuple[float, ...]) -> npt.NDArray[np.float32]:
    return np.array(rows, np.float32).reshape(-1, 6)


def select(rows: npt.NDArray[np.float32], geometry: Geometry = IDENTITY, **given: Any) -> list[Any]:
    boxes, scores, classes = select_detections(rows, geometry, SelectionSettings(**given))
    assert [str(a.dtype) for a in (boxes, scores, classes)] == ["float32", "float32", "int32"]
    assert len(boxes) == len(scores) == len(classes)
    return [
        (box, round(score, 4), class_id)
        for box, score, class_id in zip(
            boxes.tolist(), scores.tolist(), classes.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(candidates(), id="none"),
        pytest.param(candidates((0, 0, 9, 9, 0.29, 1)), id="below the threshold"),
        pytest.param(candidates((5, 5, 5, 9, 0.9, 1)), id="no width"),
        pytest.param(candidates((5, 9, 9, 5, 0.9, 1)), id="upside down"),
        pytest.param(candidates((float("nan"), 0, 9, 9, 0.9, 1)), id="not a number"),
        pytest.param(candidates((0, 0, float("inf"), 9, 0.9, 1)), id="infinite"),
        pytest.param(candidates((0, 0, 9, 9, float("nan"), 1)), id="score not a number"),
        pytest.param(candidates((-20, -20, -5, -5, 0.9, 1)), id="outside the image"),
    ],
)
def test_what_is_dropped(rows: npt.NDArray[np.float32]) -> None:
    assert select(rows) == []


def test_a_score_of_exactly_the_threshold_is_kept() -> None:
    assert len(select(candidates((0, 0, 9, 9, 0.3, 1)), score_threshold=0.3)) == 1


def test_equal_scores_keep_the_order_of_the_candidates() -> None:
    rows = candidates((0, 0, 10, 10, 0.5, 1), (0, 0, 10, 9, 0.5, 1), (50, 50, 60, 60, 0.5, 0))
    assert select(rows) == [([0, 0, 10, 10], 0.5, 1), ([50, 50, 60, 60], 0.5, 0)]


def test_scores_descend_whatever_the_candidates_do() -> None:
    rows = candidates((0, 0, 10, 10, 0.5, 1), (50, 50, 60, 60, 0.7, 0))
    assert [score for _, score, _ in select(rows)] == [0.7, 0.5]


def test_classes_do_not_suppress_each_other() -> None:
    assert len(select(candidates((0, 0, 10, 10, 0.9, 1), (0, 0, 10, 10, 0.8, 2)))) == 2


def test_the_best_are_kept() -> None:
    rows = candidates(*[(20 * i, 0, 20 * i + 10, 10, 0.9 - i / 100, 0) for i in range(10)])
    found = select(rows, max_detections=3)
    assert [score for _, score, _ in found] == [0.9, 0.89, 0.88]


def test_boxes_go_back_to_the_image_and_are_clipped() -> None:
    # An image of 600 x 300 in an input of 300 x 300: half the size, 75 pixels above.
    geometry = Geometry(np.array((0.5, 0.5, 0, 75, 600, 300), np.float32))
    rows = candidates((-10, 75, 150, 150, 0.9, 0), (150, 100, 310, 240, 0.8, 1))
    assert select(rows, geometry) == [([0, 0, 300, 150], 0.9, 0), ([300, 50, 600, 300], 0.8, 1)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score_threshold", -0.1),
        ("score_threshold", float("nan")),
        ("iou_threshold", 1.5),
        ("max_detections", 0),
    ],
)
def test_settings_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        SelectionSettings(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=name):
        SelectionSettings().override(**{name: value})  # type: ignore[arg-type]


def test_settings_from_parameters() -> None:
    settings = SelectionSettings.from_parameters({"iou_threshold": "0.6", "max_detections": "10"})
    assert settings == SelectionSettings(iou_threshold=0.6, max_detections=10)
    with pytest.raises(ValueError, match="unknown parameter 'nms'"):
        SelectionSettings.from_parameters({"nms": "1"})
    with pytest.raises(ValueError, match="must be int, got 'many'"):
        SelectionSettings.from_parameters({"max_detections": "many"})
