"""Real images as the module takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from detserve.imaging import ImageError, PreprocessSettings, preprocess
from exporting.errors import ExportError
from photos import PHOTOS, jpeg

__all__ = ["SUFFIXES", "ImageForm", "read_samples"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class ImageForm:
    """What the module was trained on.

    Attributes:
        settings: Size and fit of the image.
        order: Order of the channels, `rgb` or `bgr`.
        mean: Subtracted from pixels of 0 to 255, by channel in that order.
        std: What the difference is divided by.
    """

    settings: PreprocessSettings
    order: str = "rgb"
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (255.0, 255.0, 255.0)

    def apply(self, data: bytes) -> npt.NDArray[np.float32]:
        """Decode an image and give it that form: float32 [3, H, W].

        Raises:
            ImageError: The bytes are no image that can be read.
        """
        fitted = np.empty((self.settings.height, self.settings.width, 3), np.uint8)
        preprocess(data, self.settings, fitted)
        pixels = fitted[..., ::-1] if self.order == "bgr" else fitted
        values = (pixels.astype(np.float32) - np.array(self.mean, np.float32)) / np.array(
            self.std, np.float32
        )
        return np.ascontiguousarray(values.transpose(2, 0, 1))


def read_samples(
    folder: Path | None, form: ImageForm, count: int
) -> tuple[Sequence[str], npt.NDArray[np.float32]]:
    """Read images to compare on.

    Args:
        folder: Folder of images; None takes the four photos of the demo.
        form: How they are given to the module.
        count: How many are read at most, in the order of their names.

    Returns:
        Names, and float32 [count, 3, H, W]; one image alone is followed by its mirrored copy, so
        that what the export took from one image shows on another.

    Raises:
        ExportError: There are none, or one cannot be read.
    """
    if folder is None:
        try:
            sources = {name: jpeg(name) for name in PHOTOS[:count]}
        except FileNotFoundError as error:
            raise ExportError(f"{error}, or give a folder of images with --images") from error
    else:
        try:
            paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
            sources = {path.name: path.read_bytes() for path in paths[:count]}
        except OSError as error:
            raise ExportError(f"the images cannot be read: {error}") from error
        if not sources:
            raise ExportError(f"{folder} holds no images ({', '.join(SUFFIXES)})")
    images = []
    for name, data in sources.items():
        try:
            images.append(form.apply(data))
        except ImageError as error:
            raise ExportError(f"{name}: {error}") from error
    names = list(sources)
    if len(images) == 1:
        names.append(f"{names[0]} (mirrored)")
        images.append(images[0][..., ::-1])
    return names, np.stack(images)
