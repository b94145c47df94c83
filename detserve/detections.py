"""The result types, shared by the in-process pipeline and every client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from detserve import conversions

if TYPE_CHECKING:
    import pandas as pd
    import supervision as sv

__all__ = ["Detection", "Detections"]


@dataclass(frozen=True, slots=True)
class Detection:
    """One object found in an image.

    Attributes:
        class_id: Index into the model's ``labels.txt``.
        label: The class's name, or ``"class <id>"`` where the model has no labels.
        score: Confidence in [0, 1].
        box_xyxy: Left, top, right, bottom in pixels of the image as sent, EXIF rotation applied.
    """

    class_id: int
    label: str
    score: float
    box_xyxy: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False, slots=True)
class Detections(Sequence[Detection]):
    """What a detector found in one image, by descending score.

    Attributes:
        boxes_xyxy: float32 [N, 4]: left, top, right, bottom in pixels of the image as sent,
            EXIF rotation applied.
        scores: float32 [N], in [0, 1], descending.
        class_ids: int32 [N], indices into ``labels``.
        labels: The names of all the classes that the model knows; may be empty.
    """

    boxes_xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int32]
    labels: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def empty(cls, labels: tuple[str, ...] = ()) -> Detections:
        """No detections."""
        return cls(
            np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int32), labels
        )

    def label_of(self, class_id: int) -> str:
        """The name of a class."""
        if 0 <= class_id < len(self.labels):
            return self.labels[class_id]
        return f"class {class_id}"

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice) -> Detections: ...
    def __getitem__(self, index: int | slice) -> Detection | Detections:
        if isinstance(index, slice):
            return Detections(
                self.boxes_xyxy[index], self.scores[index], self.class_ids[index], self.labels
            )
        class_id = int(self.class_ids[index])
        x1, y1, x2, y2 = (float(value) for value in self.boxes_xyxy[index])
        return Detection(
            class_id, self.label_of(class_id), float(self.scores[index]), (x1, y1, x2, y2)
        )

    def __iter__(self) -> Iterator[Detection]:
        return (self[index] for index in range(len(self)))

    def to_dicts(self) -> list[dict[str, Any]]:
        """The detections as JSON-ready dictionaries; boxes to 0.01 px, scores to 1e-4."""
        return [
            {
                "label": found.label,
                "class_id": found.class_id,
                "score": round(found.score, 4),
                "box_xyxy": [round(value, 2) for value in found.box_xyxy],
            }
            for found in self
        ]

    def to_coco(
        self, image_id: int, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Entries of COCO's results format; see `detserve.conversions.to_coco`."""
        return conversions.to_coco(self, image_id, category_ids)

    def to_pandas(self) -> pd.DataFrame:
        """A table, a row a detection; see `detserve.conversions.to_pandas`."""
        return conversions.to_pandas(self)

    def to_supervision(self) -> sv.Detections:
        """The library supervision's own; see `detserve.conversions.to_supervision`."""
        return conversions.to_supervision(self)
