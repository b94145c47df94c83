"""The size of an encoded image, from its header alone."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

from PIL import Image

from gateway.problems import Problem

__all__ = ["image_size_wh"]

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
# What Pillow raises on files that it cannot read, beside OSError.
_PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError,
    EOFError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
_ORIENTATION = 0x0112
_ON_ITS_SIDE = (5, 6, 7, 8)


def image_size_wh(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, EXIF rotation applied; no pixel is decoded.

    Raises:
        Problem: 400, it is no image that the detector takes.
    """
    if not data:
        raise Problem(400, "the image is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd metadata and of large images
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
                turned = "exif" in image.info or image.format in ("TIFF", "WEBP", "PNG")
                orientation = image.getexif().get(_ORIENTATION) if turned else None
    except _PILLOW_ERRORS:
        raise Problem(
            400,
            f"{len(data):,} bytes that are no readable image: send JPEG, PNG, WebP, BMP or TIFF",
        ) from None
    return (height, width) if orientation in _ON_ITS_SIDE else (width, height)
