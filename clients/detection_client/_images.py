"""What a caller may give as an image -> the bytes that are sent."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from detection_client._errors import InvalidInputError

__all__ = [
    "PILLOW_ERRORS",
    "ArrayEncoding",
    "ImageInput",
    "describe_image",
    "encode_array",
    "over_white",
    "read_image",
]

ImageInput: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | npt.NDArray[Any]"
ArrayEncoding = Literal["bmp", "png", "jpeg"]

# What Pillow raises on files that it cannot read or write, beside OSError.
PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError,
    EOFError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip

_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "bmp": {"format": "BMP"},
    "png": {"format": "PNG", "compress_level": 1},
    "jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}


def read_image(image: ImageInput, array_encoding: ArrayEncoding = "bmp") -> bytes:
    """The encoded image: a file's content, the bytes as they are, or an array encoded.

    Args:
        image: A path, an encoded image, or an array as `encode_array` takes it.
        array_encoding: How an array is encoded.

    Raises:
        InvalidInputError: The file cannot be read, there are no bytes, or the array is of
            another dtype or shape.
    """
    if isinstance(image, np.ndarray):
        return encode_array(image, array_encoding)
    if isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
        if not data:
            raise InvalidInputError("the image is empty (0 bytes)")
        return data
    if not isinstance(image, (str, os.PathLike)):
        raise InvalidInputError(
            f"an image is a path, bytes or a NumPy array, not {type(image).__name__}"
        )
    try:
        data = Path(image).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise InvalidInputError(f"cannot read {os.fspath(image)}: {reason}") from error
    if not data:
        raise InvalidInputError(f"{os.fspath(image)} is empty (0 bytes)")
    return data


def encode_array(array: npt.NDArray[Any], encoding: ArrayEncoding = "bmp") -> bytes:
    """Encode pixels for sending.

    Args:
        array: uint8 [H, W, 3] RGB, [H, W] grey, or [H, W, 4] RGBA, whose transparency is laid
            over white as the server does it.
        encoding: ``"bmp"``, lossless and quick; ``"png"``, lossless, smaller and slow;
            ``"jpeg"``, smallest, but the pixels change a little. The server limits an image's
            bytes: 20 MB unless configured otherwise, which is 7 megapixels of BMP.

    Raises:
        InvalidInputError: The array is of another dtype or shape, or empty.
    """
    if array.dtype != np.uint8:
        raise InvalidInputError(f"an image array must be uint8, not {array.dtype}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise InvalidInputError(
            "an image array must be [H, W, 3] RGB, [H, W] grey or [H, W, 4] RGBA,"
            f" not {list(array.shape)}"
        )
    if array.size == 0:
        raise InvalidInputError(f"the image array is empty: {list(array.shape)}")
    picture = Image.fromarray(np.ascontiguousarray(array))
    if picture.mode == "RGBA":
        picture = over_white(picture)
    buffer = io.BytesIO()
    try:
        picture.save(buffer, **_SAVE_OPTIONS[encoding])
    except (OSError, ValueError) as error:  # a side longer than the format's header can say
        raise InvalidInputError(
            f"cannot encode an array of {list(array.shape)} as {encoding}: {error}"
        ) from error
    return buffer.getvalue()


def over_white(image: Image.Image) -> Image.Image:
    """An image with transparency as RGB over white, as the server sees it."""
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def describe_image(image: object) -> str:
    """A few words that name an image in a message."""
    if isinstance(image, np.ndarray):
        return f"array {list(image.shape)}"
    if isinstance(image, (bytes, bytearray, memoryview)):
        return f"{len(image):,} bytes"
    if isinstance(image, (str, os.PathLike)):
        return os.fspath(image)
    return type(image).__name__
