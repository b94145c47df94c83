"""The images of a report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evaluation import Dataset, load_dataset
from evaluation.agreement import agreement_dataset
from photos import PHOTOS, jpeg

__all__ = ["split"]

_CALIBRATION_SHARE = 4  # one of so many images is calibrated with, unless others are given


def split(
    model: Path,
    workspace: Path,
    images: Path | None,
    annotations: Path | None,
    calibration: Path | None,
) -> tuple[Dataset, str, Path]:
    """Choose what to judge variants by, and what to fit them to.

    Args:
        model: The detector.
        workspace: An existing folder for copies and links.
        images: Folder of labelled images; None for the demo's photos.
        annotations: Their labels; None for where `evaluation.load_dataset` looks.
        calibration: Folder of images to fit to; None for every fourth of `images`.

    Returns:
        The images to evaluate on, what the accuracy is called, and the folder to calibrate with.
    """
    if images is None:
        folder = workspace / "photos"
        folder.mkdir()
        photos = [folder / f"{name}.jpg" for name in PHOTOS]
        for photo in photos:
            photo.write_bytes(jpeg(photo.stem))
        return agreement_dataset(model, photos), "agreement", calibration or folder
    dataset = load_dataset(images, annotations)
    if calibration is not None:
        return dataset, "mAP", calibration
    # What a variant was fitted to is not what it is judged by.
    folder = workspace / "calibration"
    folder.mkdir()
    held = dataset.images[::_CALIBRATION_SHARE]
    for number, image in enumerate(held):
        (folder / f"{number:06}{image.path.suffix}").symlink_to(image.path.resolve())
    rest = tuple(image for image in dataset.images if image not in held)
    return replace(dataset, images=rest), "mAP", folder
