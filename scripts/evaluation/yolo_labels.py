"""YOLO-format labels: a text file an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.dataset import (
    Dataset,
    DatasetError,
    LabelledImage,
    Objects,
    read_sizes,
    several,
)

__all__ = ["load_yolo"]

# Writers round and boxes reach over the edge by a hair; anything more is another unit.
_SLACK = 0.01


def load_yolo(
    images: Path, paths: Sequence[Path], labels: Path | None, limit: int | None
) -> Dataset:
    """See `load_dataset`."""
    folder = _find_labels(images, paths) if labels is None else labels
    files = {path: folder / path.relative_to(images).with_suffix(".txt") for path in paths}
    if not any(file.is_file() for file in files.values()):
        first = files[paths[0]]
        raise DatasetError(f"{folder} holds no label file of these images, such as {first}")
    chosen = paths[:limit]
    notes, found, unreadable, problems = [], [], [], []
    for path, size_wh in read_sizes(chosen):
        if size_wh is None:
            unreadable.append(path.name)
            continue
        file = files[path]
        if not file.is_file():
            found.append(LabelledImage(path, Objects.of([], [])))
            continue
        try:
            found.append(LabelledImage(path, read_label_file(file, size_wh)))
        except DatasetError as error:
            problems.append(str(error))
    if problems:
        raise DatasetError(several(f"{len(problems)} label files cannot be used", problems))
    if not found:
        raise DatasetError(several("no image can be read", unreadable))
    if unreadable:
        notes.append(
            several(f"{len(unreadable)} images cannot be read and are left out", unreadable)
        )
    if without := sum(not files[path].is_file() for path in chosen):
        notes.append(f"{without} of {len(chosen)} images have no label file: taken as empty")
    names = _read_names(folder, images)
    return Dataset(tuple(found), names, notes=tuple(notes))


def read_label_file(file: Path, size_wh: tuple[int, int]) -> Objects:
    """Read the label file of an image.

    Args:
        file: Lines `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...` for the polygon around an
            object; all but the class from 0 to 1.
        size_wh: The image's width and height in pixels.

    Raises:
        DatasetError: A line is something else.
    """
    width, height = size_wh
    boxes, classes = [], []
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file.name} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            class_id, box = _parse(line.split())
        except ValueError as error:
            raise DatasetError(f"{file.name}, line {number}: {error}") from error
        x1, y1, x2, y2 = (min(max(value, 0.0), 1.0) for value in box)
        classes.append(class_id)
        boxes.append((x1 * width, y1 * height, x2 * width, y2 * height))
    return Objects.of(boxes, classes)


def _parse(words: Sequence[str]) -> tuple[int, tuple[float, float, float, float]]:
    """A line's class and box x1 y1 x2 y2, in parts of the image."""
    polygon = len(words) >= 7 and len(words) % 2 == 1
    if len(words) != 5 and not polygon:
        raise ValueError(f"has {len(words)} numbers; wanted are class cx cy w h, or a polygon")
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"{' '.join(words[:5])!r} are not all numbers") from None
    class_id = values[0]
    if not class_id.is_integer() or class_id < 0:
        raise ValueError(f"the class is {words[0]}; it must be 0 or more, and whole")
    if not all(math.isfinite(v) and -_SLACK <= v <= 1 + _SLACK for v in values[1:]):
        raise ValueError(
            f"has {' '.join(words[1:5])}; positions are in parts of the image, 0 to 1, not pixels"
        )
    if polygon:
        xs, ys = values[1::2], values[2::2]
        return int(class_id), (min(xs), min(ys), max(xs), max(ys))
    _, cx, cy, w, h = values
    if w <= 0 or h <= 0:
        raise ValueError(f"the box has the width {w:g} and the height {h:g}")
    return int(class_id), (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)


def _find_labels(images: Path, paths: Sequence[Path]) -> Path:
    parts = images.absolute().parts
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        folder = Path(*parts[:last], "labels", *parts[last + 1 :])
        if folder.is_dir():
            return folder
    if any(path.with_suffix(".txt").is_file() for path in paths):
        return images
    raise DatasetError(
        f"no labels were found for {images}: neither a folder `labels` in place of `images` nor"
        " .txt files beside the images; name a COCO file or a folder of label files (--annotations)"
    )


def _read_names(labels: Path, images: Path) -> Mapping[int, str]:
    """The classes' names from `data.yaml`, `classes.txt` or the like near the labels, if any."""
    for folder in dict.fromkeys((labels, labels.parent, labels.parent.parent, images)):
        for name in ("data.yaml", "dataset.yaml"):
            if (folder / name).is_file():
                return _names_of_yaml(folder / name)
        if (folder / "classes.txt").is_file():
            lines = (folder / "classes.txt").read_text(encoding="utf-8").splitlines()
            return dict(enumerate(line.strip() for line in lines if line.strip()))
    return {}


def _names_of_yaml(file: Path) -> Mapping[int, str]:
    try:
        import yaml
    except ModuleNotFoundError:
        raise DatasetError(
            f"reading {file} needs PyYAML: pip install 'detserve[evaluate]'"
        ) from None
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file} is no YAML file: {error}") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(key, int) for key in names):
        raise DatasetError(f"{file} names no classes: `names` must be a list, or numbers to names")
    return {number: str(name) for number, name in names.items()}
