"""The same object's number in frame after frame, by the library norfair."""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np

from detserve.detections import Detections

__all__ = ["Tracker", "TrackingUnavailableError", "make_tracker"]

MIN_IOU = 0.3  # least overlap of an object with where it is expected
HOLD_FRAMES = 15  # for which an object that is seen no more keeps its number
CONFIRM_FRAMES = 2  # in which an object must be seen again to get a number


class TrackingUnavailableError(Exception):
    """The tracker's library is not installed."""


class Tracker(Protocol):
    """Numbers the objects of one stream."""

    def update(self, found: Detections, *, frames_since: int = 1) -> list[int | None]:
        """Take the next frame's detections.

        Args:
            found: What was found in it.
            frames_since: Frames since the one before, more than 1 where some were dropped.

        Returns:
            For each detection the object's number from 1; None while it is too new to have one.
        """


def make_tracker() -> Tracker:
    """A tracker for one stream.

    Raises:
        TrackingUnavailableError: norfair is missing.
    """
    try:
        return _NorfairTracker()
    except ImportError as error:
        raise TrackingUnavailableError(
            "tracking needs the extra `tracking`: pip install 'detserve[tracking]'"
        ) from error


class _NorfairTracker:
    """A Kalman filter for each object; boxes of the same class are matched by their overlap."""

    def __init__(self) -> None:
        import norfair  # optional, and loads scipy

        self._library = norfair
        # It warns of every box that its filter expects to shrink to nothing, on standard error.
        logging.getLogger("norfair").setLevel(logging.ERROR)
        self._frame = 0
        self._tracker = norfair.Tracker(
            distance_function="iou",
            distance_threshold=1 - MIN_IOU,
            hit_counter_max=HOLD_FRAMES,
            initialization_delay=CONFIRM_FRAMES,
        )
        # norfair numbers the objects of all trackers together; a stream's begin with 1.
        self._numbers: dict[int, int] = {}

    def update(self, found: Detections, *, frames_since: int = 1) -> list[int | None]:
        self._frame += 1
        entries = [
            self._library.Detection(
                points=np.asarray(box, np.float64).reshape(2, 2),
                scores=np.repeat(float(score), 2),
                label=int(class_id),
                data=(self._frame, place),
            )
            for place, (box, score, class_id) in enumerate(
                zip(found.boxes_xyxy, found.scores, found.class_ids, strict=True)
            )
        ]
        # The filter is told of at most so many frames at once as an object outlives.
        objects = self._tracker.update(entries, period=min(max(frames_since, 1), HOLD_FRAMES))
        ids: list[int | None] = [None] * len(entries)
        for tracked in objects:
            frame, place = tracked.last_detection.data
            if frame == self._frame and tracked.id is not None:
                ids[place] = self._numbers.setdefault(tracked.id, len(self._numbers) + 1)
        return ids
