"""Which class of a dataset is which of a detector's."""

from __future__ import annotations

from collections.abc import Sequence

from coco import CATEGORY_IDS, LABELS
from evaluation.dataset import Dataset, DatasetError, several

__all__ = ["match_classes"]


def match_classes(dataset: Dataset, labels: Sequence[str]) -> tuple[dict[int, int], list[str]]:
    """Match by name where both have names that agree, else by number.

    Args:
        dataset: Its classes have numbers and perhaps names.
        labels: The names of the detector's classes by index; may be empty.

    Returns:
        Class id of the dataset to index of the detector's class, and what the user should know:
        the dataset's classes that the detector does not have, whose objects do not count.

    Raises:
        DatasetError: Neither names nor numbers agree.
    """
    used = {int(c) for image in dataset.images for c in image.objects.classes}
    if dataset.names:
        if unnamed := sorted(used - set(dataset.names)):
            raise DatasetError(
                f"objects are of the classes {unnamed}, but names are given to"
                f" {min(dataset.names)} to {max(dataset.names)}"
            )
        indices = {_plain(label): index for index, label in enumerate(labels)}
        by_name = {
            class_id: indices[_plain(name)]
            for class_id, name in dataset.names.items()
            if _plain(name) in indices
        }
        if by_name:
            unknown = [n for class_id, n in dataset.names.items() if class_id not in by_name]
            notes = []
            if unknown:
                what = f"{len(unknown)} classes of the dataset are unknown to the detector"
                notes.append(several(f"{what}, their objects do not count", unknown))
            return by_name, notes
        if labels:
            raise DatasetError(
                several("no class of the dataset", list(dataset.names.values()))
                + several(" is one of the detector's", list(labels))
            )
    return _by_number(dataset, used, len(labels))


def _by_number(dataset: Dataset, used: set[int], classes: int) -> tuple[dict[int, int], list[str]]:
    if dataset.coco_ids:
        if set(dataset.names) <= set(CATEGORY_IDS) and classes in (0, len(LABELS)):
            note = "the detector has no labels: its classes are taken to be COCO's 80 in order"
            return {number: CATEGORY_IDS.index(number) for number in dataset.names}, [note]
        raise DatasetError(
            "the detector has no labels, and the dataset's category ids are not COCO's: give the"
            " detector its labels (scripts/import_detector.py --labels)"
        )
    if classes and (beyond := sorted(c for c in used if c >= classes)):
        raise DatasetError(
            f"objects are of the classes {beyond}, but the detector has {classes}: 0 to"
            f" {classes - 1}"
        )
    count = classes or max(used, default=0) + 1
    return {number: number for number in range(count)}, []


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ").replace("-", " ")
