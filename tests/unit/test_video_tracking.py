"""The same object keeps its number from frame to frame."""

from __future__ import annotations

import numpy as np
import pytest

from detection_client._tracking import make_tracker
from detserve.detections import Detections

pytest.importorskip("norfair", reason="tracking needs the extra `tracking`")


def found(*lefts: float) -> Detections:
    boxes = np.array([[left, 10, left + 40, 90] for left in lefts], np.float32).reshape(-1, 4)
    count = len(lefts)
    return Detections(boxes, np.full(count, 0.9, np.float32), np.zeros(count, np.int32))


def test_two_objects_that_move_keep_their_numbers() -> None:
    tracker = make_tracker()
    left_and_right = set()
    for step in range(10):
        pair = (10.0 + 2 * step, 300.0 - 2 * step)
        ids = tracker.update(found(*(pair if step % 2 else pair[::-1])))
        if step >= 4:
            left_and_right.add(tuple(ids if step % 2 else ids[::-1]))
    assert left_and_right in ({(1, 2)}, {(2, 1)})
    assert tracker.update(Detections.empty()) == []


def test_numbers_begin_with_one_in_every_stream() -> None:
    for _ in range(2):
        tracker = make_tracker()
        ids = [tracker.update(found(10)) for _ in range(5)][-1]
        assert ids == [1]
