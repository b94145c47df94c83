"""Labelled images for the tests, in YOLO's form and in COCO's."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

from contract import CANDIDATES, DetectorInfo
from tests.models import write_detector

__all__ = [
    "Scene",
    "as_coco",
    "write_coco",
    "write_constant_detector",
    "write_images",
    "write_yolo",
]

# Name of an image to its objects: class, then x1 y1 x2 y2 in pixels.
Scene = Mapping[str, Sequence[tuple[int, float, float, float, float]]]
SIZE_WH = (96, 96)


def write_images(folder: Path, scene: Scene) -> Path:
    """Write a grey image for every name."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    Image.new("RGB", SIZE_WH, "grey").save(stream, "JPEG")
    for name in scene:
        (folder / f"{name}.jpg").write_bytes(stream.getvalue())
    return folder


def write_yolo(root: Path, scene: Scene) -> Path:
    """Write `images/` and `labels/`; images without an object get no label file.

    Returns:
        The folder of images.
    """
    images = write_images(root / "images", scene)
    (root / "labels").mkdir(exist_ok=True)
    width, height = SIZE_WH
    for name, objects in scene.items():
        lines = [
            f"{label} {(x1 + x2) / 2 / width!r} {(y1 + y2) / 2 / height!r}"
            f" {(x2 - x1) / width!r} {(y2 - y1) / height!r}\n"
            for label, x1, y1, x2, y2 in objects
        ]
        if lines:
            (root / "labels" / f"{name}.txt").write_text("".join(lines))
    return images


def as_coco(
    scene: Scene, categories: Mapping[int, tuple[int, str]], size_wh: tuple[int, int] = SIZE_WH
) -> dict[str, Any]:
    """The same as the content of a COCO file.

    Args:
        scene: The images and their objects.
        categories: Class to category id and name.
        size_wh: Width and height of all the images.
    """
    names = list(scene)
    return {
        "images": [
            {"id": 7 + i, "file_name": f"{name}.jpg", "width": size_wh[0], "height": size_wh[1]}
            for i, name in enumerate(names)
        ],
        "categories": [{"id": number, "name": name} for number, name in categories.values()],
        "annotations": [
            {
                "id": 100 * i + j,
                "image_id": 7 + i,
                "category_id": categories[label][0],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for i, name in enumerate(names)
            for j, (label, x1, y1, x2, y2) in enumerate(scene[name])
        ],
    }


def write_coco(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a COCO file."""
    path.write_text(json.dumps(content))
    return path


def write_constant_detector(path: Path, rows: Sequence[Sequence[float]], **info: Any) -> Path:
    """Write a detector of the contract that finds the same in every image.

    Args:
        path: The ONNX file.
        rows: x1 y1 x2 y2 score class, by descending score.
        info: Fields of `DetectorInfo`.
    """
    candidates = np.zeros((CANDIDATES, 6), np.float32)
    candidates[: len(rows)] = rows
    model = onnx.load(write_detector(path, SIZE_WH[0], candidates))
    DetectorInfo(input_size_wh=SIZE_WH, resize="stretch", **info).write_to(model)
    onnx.save(model, path)
    return path
