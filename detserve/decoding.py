"""Encoded image -> RGB pixels, with limits that are checked before anything is decoded."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

__all__ = ["EncodedImage", "ImageError", "ImageTooLargeError"]

UInt8Array = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
EXIF_ORIENTATION = 0x0112
TILE_WIDTH, TILE_LENGTH, PHOTOMETRIC = 322, 323, 262  # TIFF tags
WHITE_IS_ZERO = 0
MAX_JPEG_SCANS = 100  # an encoder makes about ten; a progressive file of thousands is an attack
START_OF_SCAN = b"\xff\xda"

# What Pillow's readers raise on corrupt files, beside OSError.
_CORRUPT = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, ArithmeticError,
    AttributeError, EOFError, struct.error, zlib.error,
)  # fmt: skip


class ImageError(ValueError):
    """The bytes sent are no image that this pipeline can read; the message says why."""


class ImageTooLargeError(ImageError):
    """The image is over a limit of bytes or of pixels."""


class _Buffers(threading.local):
    """A pixel buffer for every thread: a fresh one per image would cost its page faults."""

    pixels: UInt8Array = np.empty(0, np.uint8)

    def at_least(self, size: int) -> UInt8Array:
        if self.pixels.size < size:
            self.pixels = np.empty(size, np.uint8)
        return self.pixels


_buffers = _Buffers()


class EncodedImage:
    """An image whose header has been read and found to be within the limits.

    Attributes:
        size_wh: Width and height in pixels, EXIF orientation applied.
        orientation: EXIF orientation, 1 to 8.
    """

    def __init__(self, data: bytes, *, max_bytes: int, max_pixels: int) -> None:
        """Read the header of a JPEG, PNG, WebP, BMP or TIFF image.

        Args:
            data: The encoded image.
            max_bytes: Largest ``data`` that is looked at.
            max_pixels: Most pixels (width x height) that may be decoded.

        Raises:
            ImageTooLargeError: The image is over one of the limits.
            ImageError: It is of another format, or its header is corrupt.
        """
        if not data:
            raise ImageError("the image is empty (0 bytes)")
        if len(data) > max_bytes:
            raise ImageTooLargeError(
                f"the image has {len(data):,} bytes; the limit is {max_bytes:,}"
            )
        with _pillow_errors():
            self._image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = self._image.size
        if width < 1 or height < 1:
            raise ImageError(f"the image declares a size of {width} x {height} pixels")
        if width * height > max_pixels:
            raise ImageTooLargeError(
                f"the image has {width} x {height} = {width * height:,} pixels;"
                f" the limit is {max_pixels:,}"
            )
        self._data = data
        with _pillow_errors():
            _refuse_bombs(self._image, data, max_pixels)
            self.orientation = _orientation(self._image)
        self.size_wh = (height, width) if self.swaps_axes else (width, height)

    @property
    def swaps_axes(self) -> bool:
        """Whether the orientation exchanges width and height."""
        return self.orientation >= 5

    def decode(self, at_least_wh: tuple[int, int]) -> tuple[UInt8Array, int]:
        """Decode the pixels as they are stored, before the orientation is applied.

        Transparency is laid over white, 16-bit samples are scaled to 8 bits, CMYK is converted,
        and of several frames the first is taken.

        Args:
            at_least_wh: Width and height, as stored, that the caller will scale down to. A JPEG
                is decoded at the smallest of the scales 1, 1/2, 1/4, 1/8 that is not below it.

        Returns:
            uint8 [H, W, 3], RGB, and the reduction k of the scale 1/k: a pixel of it stands for
            k x k of the image, those of the last row and column partly for none. The pixels may
            lie in a buffer of the calling thread, which its next call overwrites.

        Raises:
            ImageError: The data is truncated or corrupt, or of a kind that is not supported.
        """
        image = self._image
        with _pillow_errors():
            if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
                return _decode_jpeg(self._data, image.size, at_least_wh)
            return _to_rgb(image, at_least_wh)


@contextlib.contextmanager
def _pillow_errors() -> Iterator[None]:
    """Turn what the decoders raise into our errors."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            "the data is not a JPEG, PNG, WebP, BMP or TIFF image, or its header is corrupt"
        ) from None
    except (Image.DecompressionBombError, MemoryError):
        raise ImageTooLargeError("the image declares more pixels than can be decoded") from None
    except _CORRUPT as error:
        raise ImageError(f"the image is truncated or corrupt: {error}") from None


def _is_tiff(image: Image.Image) -> TypeGuard[TiffImagePlugin.TiffImageFile]:
    return isinstance(image, TiffImagePlugin.TiffImageFile)


def _refuse_bombs(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Refuse what costs far more to decode than its size says."""
    if image.info.get("progressive") and data.count(START_OF_SCAN) > MAX_JPEG_SCANS:
        raise ImageError(f"the JPEG has more than {MAX_JPEG_SCANS} scans")
    if _is_tiff(image):
        tile = [int(image.tag_v2.get(tag, 1)) for tag in (TILE_WIDTH, TILE_LENGTH)]
        if tile[0] * tile[1] > max_pixels:
            raise ImageTooLargeError(
                f"the TIFF has tiles of {tile[0]} x {tile[1]} pixels; the limit is {max_pixels:,}"
            )


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except _CORRUPT:  # a corrupt EXIF block does not spoil the pixels
        return 1
    return orientation if orientation in range(1, 9) else 1


def _decode_jpeg(
    data: bytes, size_wh: tuple[int, int], at_least_wh: tuple[int, int]
) -> tuple[UInt8Array, int]:
    width, height = size_wh
    # Only the scales of a power of two: libjpeg-turbo is slow at the others.
    shrink = min(width / at_least_wh[0], height / at_least_wh[1])
    reduction = next((k for k in (8, 4, 2) if shrink >= k), 1)
    out_wh = (-(-width // reduction), -(-height // reduction))
    buffer = _buffers.at_least(out_wh[0] * out_wh[1] * 3)

    decoded: UInt8Array = simplejpeg.decode_jpeg(
        data, "RGB", min_width=out_wh[0], min_height=out_wh[1], buffer=buffer, strict=True
    )
    return decoded, reduction


def _to_rgb(image: Image.Image, at_least_wh: tuple[int, int]) -> tuple[UInt8Array, int]:
    """Read an image that Pillow has opened, whatever its mode."""
    reduction = 1
    if image.format in ("JPEG", "MPO"):
        width = image.width
        image.draft(None, at_least_wh)
        reduction = round(width / image.width)
    if image.mode.startswith("I;16"):
        samples = np.asarray(image).astype(np.uint32)
        if _is_tiff(image) and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            samples = np.uint32(0xFFFF) - samples
        grey = ((samples + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2), reduction
    if image.mode in ("I", "F"):
        raise ImageError("the image has 32-bit samples; 8 and 16 bits are supported")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB")), reduction
    return np.asarray(image.convert("RGB")), reduction
