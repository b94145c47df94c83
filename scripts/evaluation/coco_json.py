"""COCO's annotations: one JSON file for all images."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.dataset import (
    Dataset,
    DatasetError,
    LabelledImage,
    Objects,
    read_sizes,
    several,
)

__all__ = ["load_coco"]


def load_coco(images: Path, paths: Sequence[Path], file: Path, limit: int | None) -> Dataset:
    """See `load_dataset`. Only the images that the file lists are asked about."""
    content = _read(file)
    names = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
    present = {str(path.relative_to(images)): path for path in paths}
    # The file may name folders that the images were unpacked without: a name that is there once,
    # and is listed once, will do.
    by_name = {path.name: path for path in paths}
    known = Counter(path.name for path in paths)
    wanted = Counter(Path(str(entry["file_name"])).name for entry in content["images"])
    listed: dict[Path, dict[str, Any]] = {}
    missing = []
    for entry in content["images"]:
        name = str(entry["file_name"])
        base, path = Path(name).name, present.get(name)
        if path is None and known[base] == wanted[base] == 1:
            path = by_name[base]
        if path is None:
            missing.append(name)
        elif path in listed:
            raise DatasetError(f"{file} lists {name} twice")
        else:
            listed[path] = entry
    if not listed:
        raise DatasetError(
            f"none of the {len(missing)} images that {file} lists, such as {missing[:1]}, is in"
            f" {images}"
        )
    notes = []
    if missing:
        notes.append(
            several(f"{len(missing)} images of {file.name} are not in {images}, left out", missing)
        )
    if extra := [path.name for path in paths if path not in listed]:
        notes.append(several(f"{len(extra)} images are not in {file.name}, left out", extra))
    objects = _objects_by_image(content, file, names)
    found, unreadable, resized = [], [], []
    for path, size_wh in read_sizes(sorted(listed)[:limit]):
        entry = listed[path]
        if size_wh is None:
            unreadable.append(path.name)
        elif entry.get("width") is not None and (entry["width"], entry["height"]) != size_wh:
            resized.append(
                f"{path.name} has {size_wh[0]}x{size_wh[1]} pixels, its annotations are for"
                f" {entry['width']}x{entry['height']}"
            )
        else:
            found.append(LabelledImage(path, objects.get(entry["id"], Objects.of([], []))))
    if resized:
        raise DatasetError(several(f"{len(resized)} images have another size (turned as their"
                                   " EXIF says) than annotated", resized))  # fmt: skip
    if not found:
        raise DatasetError(several("no image can be read", unreadable))
    if unreadable:
        notes.append(
            several(f"{len(unreadable)} images cannot be read and are left out", unreadable)
        )
    return Dataset(tuple(found), names, coco_ids=True, notes=tuple(notes))


def _read(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{file} cannot be read as JSON: {error}") from error
    wanted = {
        "images": {"id", "file_name"},
        "annotations": {"image_id", "category_id", "bbox"},
        "categories": {"id", "name"},
    }
    for section, keys in wanted.items():
        entries = content.get(section) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DatasetError(f"{file} is no COCO file of instances: it has no list {section!r}")
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or not keys <= entry.keys():
                raise DatasetError(
                    f"{file}: {section}[{number}] lacks one of {', '.join(sorted(keys))}"
                )
    _check_ids(content["categories"], int, f"{file}: categories")
    _check_ids(content["images"], (int, str), f"{file}: images")
    for number, entry in enumerate(content["images"]):
        size = entry.get("width"), entry.get("height")
        if size != (None, None) and not all(isinstance(v, (int, float)) for v in size):
            raise DatasetError(
                f"{file}: images[{number}] has the width {size[0]!r} and the height {size[1]!r};"
                " wanted are both in pixels, or neither"
            )
    checked: dict[str, list[dict[str, Any]]] = content
    return checked


def _check_ids(
    entries: Sequence[Mapping[str, Any]], kind: type | tuple[type, ...], section: str
) -> None:
    seen: dict[Any, int] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry["id"], kind):
            raise DatasetError(f"{section}[{number}] has the id {entry['id']!r}")
        first = seen.setdefault(entry["id"], number)
        if first != number:
            raise DatasetError(
                f"{section}[{number}] has the id {entry['id']!r}, as [{first}] has already"
            )


def _objects_by_image(
    content: Mapping[str, list[dict[str, Any]]], file: Path, names: Mapping[int, str]
) -> dict[Any, Objects]:
    known = {entry["id"] for entry in content["images"]}
    annotations = defaultdict(list)
    problems = []
    for number, entry in enumerate(content["annotations"]):
        where = f"annotations[{number}]"
        if entry["image_id"] not in known:
            problems.append(f"{where} is of the image {entry['image_id']}, which is not listed")
        elif entry["category_id"] not in names:
            problems.append(f"{where} is of the category {entry['category_id']}, not listed")
        elif not _is_box(entry["bbox"]):
            problems.append(f"{where} has the box {entry['bbox']}; wanted is [x, y, width, height]")
        elif not _is_area(entry.get("area", 0)):
            problems.append(f"{where} has the area {entry['area']!r}; wanted is a number from 0 up")
        else:
            annotations[entry["image_id"]].append(entry)
    if problems:
        raise DatasetError(several(f"{file}: {len(problems)} annotations are wrong", problems))
    return {
        image_id: Objects.of(
            [(x, y, x + w, y + h) for x, y, w, h in (entry["bbox"] for entry in entries)],
            [entry["category_id"] for entry in entries],
            [entry.get("area", entry["bbox"][2] * entry["bbox"][3]) for entry in entries],
            [bool(entry.get("iscrowd", 0)) for entry in entries],
        )
        for image_id, entries in annotations.items()
    }


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(v, (int, float)) and math.isfinite(v) for v in box)
        and box[2] >= 0
        and box[3] >= 0
    )


def _is_area(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
