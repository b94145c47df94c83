"""The images that are sent."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from photos import PHOTOS, jpeg

__all__ = ["TestImage", "load_images"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_LONG_SIDES = (320, 640, 1280, 1920)


@dataclass(frozen=True)
class TestImage:
    """An encoded image, and the size it counts under; "" where sizes are not told apart."""

    __test__ = False  # no test of pytest's

    data: bytes
    size: str = ""


def load_images(folder: Path | None, *, mixed_sizes: bool) -> list[TestImage]:
    """The demo's photos or a folder's images, as they are or each in several sizes.

    Raises:
        ValueError: The folder has no images.
    """
    if folder is None:
        encoded = [jpeg(name) for name in PHOTOS]
    else:
        paths = sorted(folder.glob("*")) if folder.is_dir() else []
        encoded = [path.read_bytes() for path in paths if path.suffix.lower() in _SUFFIXES]
        if not encoded:
            raise ValueError(f"--images {folder}: no images there ({', '.join(sorted(_SUFFIXES))})")
    if not mixed_sizes:
        return [TestImage(data) for data in encoded]
    return [
        TestImage(_resized(data, side), f"{side}px") for data in encoded for side in _LONG_SIDES
    ]


def _resized(data: bytes, long_side: int) -> bytes:
    stream = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    scale = long_side / max(upright.size)
    width, height = (max(1, round(side * scale)) for side in upright.size)
    upright.resize((width, height)).save(stream, "JPEG", quality=90)
    return stream.getvalue()
