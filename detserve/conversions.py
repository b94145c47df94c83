"""Detections -> what other libraries take next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import supervision as sv

    from detserve.detections import Detections

__all__ = ["to_coco", "to_pandas", "to_supervision"]


def to_coco(
    found: Detections, image_id: int, category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Entries of COCO's results format (https://cocodataset.org/#format-results).

    Args:
        found: The detections of one image.
        image_id: The image's id in the annotations.
        category_ids: For each class of the model the category's id; None where they are the same.

    Raises:
        ValueError: A class has no category.
    """
    if category_ids is not None and len(found) and found.class_ids.max() >= len(category_ids):
        raise ValueError(
            f"class {found.class_ids.max()} has no category: there are {len(category_ids)}"
        )
    entries = []
    for one in found:
        x1, y1, x2, y2 = one.box_xyxy
        category = one.class_id if category_ids is None else int(category_ids[one.class_id])
        entries.append(
            {
                "image_id": image_id,
                "category_id": category,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": one.score,
            }
        )
    return entries


def to_pandas(found: Detections) -> pd.DataFrame:
    """A row a detection: label, class_id, score, x1, y1, x2, y2.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("to_pandas needs the package pandas: pip install pandas") from error
    boxes = {
        name: found.boxes_xyxy[:, place] for place, name in enumerate(("x1", "y1", "x2", "y2"))
    }
    labels = [found.label_of(int(class_id)) for class_id in found.class_ids]
    return pd.DataFrame(
        {
            "label": pd.Series(labels, dtype=object),
            "class_id": found.class_ids,
            "score": found.scores,
            **boxes,
        }
    )


def to_supervision(found: Detections) -> sv.Detections:
    """Detections of the library supervision, with the labels in ``data["class_name"]``.

    Raises:
        ImportError: supervision is not installed.
    """
    try:
        import supervision as sv
    except ImportError as error:
        raise ImportError(
            "to_supervision needs the package supervision: pip install supervision"
        ) from error
    labels = [found.label_of(int(class_id)) for class_id in found.class_ids]
    return sv.Detections(
        xyxy=found.boxes_xyxy.astype(np.float32),
        confidence=found.scores.astype(np.float32),
        class_id=found.class_ids.astype(int),
        data={"class_name": np.array(labels, dtype=str)},
    )
