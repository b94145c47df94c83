"""Labelled images in one form, whichever files they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from detserve.decoding import EncodedImage, ImageError

__all__ = ["Dataset", "DatasetError", "LabelledImage", "Objects", "read_sizes", "several"]

_SHOWN = 5  # problems that a message names

Float64Array = npt.NDArray[np.float64]


class DatasetError(ValueError):
    """The images or their labels cannot be used; the message says which and why."""


@dataclass(frozen=True, eq=False)
class Objects:
    """The labelled objects of one image.

    Attributes:
        boxes_xyxy: float64 [N, 4], in pixels of the image, EXIF rotation applied.
        classes: int64 [N], the dataset's own class ids.
        areas: float64 [N], in square pixels; COCO's are those of the outlines, not of the boxes.
        crowds: bool [N]: regions of many objects, where detections count neither for nor against.
    """

    boxes_xyxy: Float64Array
    classes: npt.NDArray[np.int64]
    areas: Float64Array
    crowds: npt.NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        boxes_xyxy: Sequence[Sequence[float]],
        classes: Sequence[int],
        areas: Sequence[float] | None = None,
        crowds: Sequence[bool] | None = None,
    ) -> Objects:
        """Objects of plain lists; without areas the boxes' own are taken, without crowds none."""
        boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
        of_boxes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return cls(
            boxes,
            np.asarray(classes, np.int64),
            np.asarray(of_boxes if areas is None else areas, np.float64),
            np.zeros(len(boxes), np.bool_) if crowds is None else np.asarray(crowds, np.bool_),
        )


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One image and what there is to find in it.

    Attributes:
        path: The encoded image.
        objects: What there is to find; may be none.
    """

    path: Path
    objects: Objects


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images.

    Attributes:
        images: By the order of their names.
        names: Class id to its name; empty where the labels tell none.
        coco_ids: Whether the class ids may be COCO's category ids (1 to 90 with gaps); else they
            are the detector's class indices.
        notes: What was left out in reading, for the user to know.
    """

    images: tuple[LabelledImage, ...]
    names: Mapping[int, str] = field(default_factory=dict)
    coco_ids: bool = False
    notes: tuple[str, ...] = ()

    @property
    def objects(self) -> int:
        """How many objects there are to find."""
        return sum(len(image.objects.classes) for image in self.images)

    def fingerprint(self) -> str:
        """A digest of the images' names and labels: equal only for the same questions."""
        digest = hashlib.sha256()
        for image in self.images:
            objects = image.objects
            digest.update(f"{image.path.name}\0{len(objects.classes)}\0".encode())
            digest.update(np.round(objects.boxes_xyxy, 2).tobytes())
            digest.update(objects.crowds.tobytes())
            digest.update("\0".join(self.name_of(int(c)) for c in objects.classes).encode())
        return digest.hexdigest()[:16]

    def name_of(self, class_id: int) -> str:
        """The name of a class, or its number where it has none."""
        return self.names.get(class_id, f"class {class_id}")


def read_sizes(paths: Sequence[Path]) -> Iterator[tuple[Path, tuple[int, int] | None]]:
    """Every image's width and height in pixels, EXIF rotation applied; None if it is unreadable."""
    # Nothing is decoded: the limits are not those of a server.
    for path in tqdm(paths, desc="reading labels", unit="image", disable=None, leave=False):
        try:
            yield path, EncodedImage(path.read_bytes(), max_bytes=2**40, max_pixels=2**40).size_wh
        except ImageError:
            yield path, None


def several(what: str, problems: Sequence[str], show: Callable[[str], str] = str) -> str:
    """`what`, how many, and the first few."""
    shown = "; ".join(show(problem) for problem in problems[:_SHOWN])
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"{what}: {shown}{more}"
