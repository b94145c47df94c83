from __future__ import annotations

import numpy as np
import pytest

from detserve.detections import Detections

FOUND = Detections(
    np.array([[1, 2, 11, 22], [0, 0, 5, 5]], np.float32),
    np.array([0.75, 0.5], np.float32),
    np.array([1, 0], np.int32),
    ("cat", "dog"),
)


@pytest.mark.parametrize("found", [Detections.empty(("cat",)), FOUND])
def test_every_library_gets_every_detection(found: Detections) -> None:
    pytest.importorskip("supervision")
    assert len(found.to_coco(7)) == len(found.to_pandas()) == len(found.to_supervision())


def test_coco_boxes_are_of_corner_and_size() -> None:
    first, second = FOUND.to_coco(7, category_ids=[17, 18])
    assert first == {"image_id": 7, "category_id": 18, "bbox": [1, 2, 10, 20], "score": 0.75}
    assert second["category_id"] == 17
    with pytest.raises(ValueError, match="class 1 has no category: there are 1"):
        FOUND.to_coco(7, category_ids=[17])


def test_pandas_has_a_row_a_detection() -> None:
    table = FOUND.to_pandas()
    assert list(table.columns) == ["label", "class_id", "score", "x1", "y1", "x2", "y2"]
    assert list(table["label"]) == ["dog", "cat"]
    assert list(table.loc[0, ["x1", "y1", "x2", "y2"]]) == [1, 2, 11, 22]


def test_supervision_has_boxes_and_names() -> None:
    pytest.importorskip("supervision")
    converted = FOUND.to_supervision()
    np.testing.assert_array_equal(converted.xyxy, FOUND.boxes_xyxy)
    assert list(converted.data["class_name"]) == ["dog", "cat"]


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        getattr(FOUND, f"to_{package}")()
