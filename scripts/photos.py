"""The four photos of the demo and the benchmark: scikit-image ships them inside its package."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

from PIL import Image

__all__ = ["PHOTOS", "jpeg", "photo_path"]

PHOTOS = ("astronaut", "coffee", "chelsea", "motorcycle_left")


def photo_path(name: str) -> Path:
    """Where a photo (PNG, RGB) lies on this machine.

    Raises:
        FileNotFoundError: scikit-image is not installed.
    """
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise FileNotFoundError("the photos come with scikit-image: pip install scikit-image")
    return Path(package.origin).parent / "data" / f"{name}.png"


def jpeg(name: str, quality: int = 90) -> bytes:
    """A photo as a camera or a browser would send it."""
    stream = io.BytesIO()
    with Image.open(photo_path(name)) as image:
        image.convert("RGB").save(stream, "JPEG", quality=quality)
    return stream.getvalue()
