"""Reading labelled images: COCO's JSON and YOLO's text files."""

from __future__ import annotations

from pathlib import Path

from evaluation.coco_json import load_coco
from evaluation.dataset import Dataset, DatasetError
from evaluation.yolo_labels import load_yolo

__all__ = ["load_dataset"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".tif", ".tiff"})


def load_dataset(
    images: Path, annotations: Path | None = None, limit: int | None = None
) -> Dataset:
    """Read labelled images.

    Args:
        images: Folder of images; folders in it are searched too. An image that its labels do not
            mention holds no object.
        annotations: A COCO file (`instances_*.json`), or a folder of YOLO label files, one
            `NAME.txt` for `NAME.jpg`: lines `class cx cy w h` with numbers from 0 to 1, or the
            class and a polygon. Without it, the labels are looked for in the folder `labels` in
            place of `images` (`images/val` and `labels/val`), then beside the images.
        limit: Only so many images, the first by name.

    Raises:
        DatasetError: There are no images or no labels, or they contradict each other.
    """
    if not images.is_dir():
        raise DatasetError(f"there is no folder of images {images}")
    if limit is not None and limit < 1:
        raise DatasetError(f"limit must be at least 1, got {limit}")
    if annotations is not None and not annotations.exists():
        raise DatasetError(f"there are no annotations {annotations}")
    paths = sorted(
        path
        for path in images.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
    if not paths:
        raise DatasetError(f"{images} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if annotations is not None and annotations.is_file():
        return load_coco(images, paths, annotations, limit)
    return load_yolo(images, paths, annotations, limit)
