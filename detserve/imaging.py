"""Encoded image -> the model's input, and the geometry that leads back to the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from detserve.decoding import EncodedImage, ImageError, ImageTooLargeError
from detserve.model_config import parse_parameters

__all__ = ["Geometry", "ImageError", "ImageTooLargeError", "PreprocessSettings", "preprocess"]

UInt8Array = npt.NDArray[np.uint8]
Float32Array = npt.NDArray[np.float32]

# Bilinear resizing looks at 2 x 2 pixels: below a third of the size it skips enough of the image
# that averaging over areas is worth its price.
AREA_AVERAGE_BELOW = 1 / 3

# EXIF orientations that mirror an axis, after those from 5 up have swapped the two.
MIRRORED_X = (2, 3, 6, 7)
MIRRORED_Y = (3, 4, 7, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessSettings:
    """How images are fitted to a model's input.

    Attributes:
        width: Width of the model's input in pixels.
        height: Height of the model's input in pixels.
        resize: ``letterbox`` keeps the aspect ratio and pads; ``stretch`` fills the input.
        anchor: Where a letterboxed image lies: in the ``center`` or at the ``top-left``.
        pad_value: Grey of the padding, 0 to 255.
        max_bytes: Largest encoded image that is accepted.
        max_pixels: Most pixels (width x height) that are decoded.
    """

    width: int
    height: int
    resize: Literal["letterbox", "stretch"] = "letterbox"
    anchor: Literal["center", "top-left"] = "center"
    pad_value: int = 114
    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"input size must be positive, got {self.width} x {self.height}")
        if self.resize not in ("letterbox", "stretch"):
            raise ValueError(f"resize must be 'letterbox' or 'stretch', got {self.resize!r}")
        if self.anchor not in ("center", "top-left"):
            raise ValueError(f"anchor must be 'center' or 'top-left', got {self.anchor!r}")
        if not 0 <= self.pad_value <= 255:
            raise ValueError(f"pad_value must be 0 to 255, got {self.pad_value}")
        if self.max_bytes < 1 or self.max_pixels < 1:
            raise ValueError("max_bytes and max_pixels must be positive")

    @classmethod
    def from_parameters(
        cls, parameters: Mapping[str, str], *, width: int, height: int
    ) -> PreprocessSettings:
        """Read the settings from the ``parameters`` of a Triton model configuration.

        Args:
            parameters: Parameter names and their string values; the names are those of the
                attributes. What is not given keeps its default.
            width: Width of the model's input in pixels.
            height: Height of the model's input in pixels.

        Raises:
            ValueError: A parameter is unknown or its value does not fit; the message names it.
        """
        values = parse_parameters(
            parameters, resize=str, anchor=str, pad_value=int, max_bytes=int, max_pixels=int
        )
        return cls(width=width, height=height, **values)


@dataclass(frozen=True, eq=False, slots=True)
class Geometry:
    """Where an image lies in the model's input: the tensor ``geometry`` of one image.

    A point (x, y) of the image is at (x * scale_x + pad_x, y * scale_y + pad_y) of the input.

    Attributes:
        values: float32 [6]: scale_x, scale_y (pixels of the input per pixel of the image),
            pad_x, pad_y (pixels of the input), width and height of the image (pixels, EXIF
            rotation applied).
    """

    values: Float32Array

    def to_image(self, boxes_xyxy: Float32Array) -> Float32Array:
        """Map boxes from the model's input to the image, clipped to it.

        Args:
            boxes_xyxy: float32 [N, 4] in pixels of the model's input.

        Returns:
            float32 [N, 4] in pixels of the image.
        """
        scale, pad, size = self.values[:2], self.values[2:4], self.values[4:]
        corners = (boxes_xyxy.reshape(-1, 2, 2) - pad) / scale
        return np.minimum(np.maximum(corners, np.float32(0)), size).reshape(-1, 4)


def preprocess(data: bytes, settings: PreprocessSettings, out: UInt8Array) -> Geometry:
    """Decode an image and fit it to the model's input.

    Args:
        data: The encoded image.
        settings: Size of the input, kind of fit, limits.
        out: uint8 [H, W, 3] of the settings' size, C-contiguous; receives the image as RGB.

    Returns:
        Where the image lies in ``out``.

    Raises:
        ImageTooLargeError: The image is over a limit of bytes or of pixels.
        ImageError: The bytes are no image that can be read.
    """
    image = EncodedImage(data, max_bytes=settings.max_bytes, max_pixels=settings.max_pixels)
    width, height = image.size_wh
    fitted_wh = _fitted_size(image.size_wh, settings)
    stored_wh = fitted_wh[::-1] if image.swaps_axes else fitted_wh
    pixels, reduction = image.decode(stored_wh)
    height_px, width_px = pixels.shape[:2]

    left = top = 0
    if fitted_wh != (settings.width, settings.height):
        if settings.anchor == "center":
            left = (settings.width - fitted_wh[0]) // 2
            top = (settings.height - fitted_wh[1]) // 2
        out[...] = settings.pad_value
    area = out[top : top + fitted_wh[1], left : left + fitted_wh[0]]
    shrink = min(stored_wh[0] / width_px, stored_wh[1] / height_px)
    interpolation = cv2.INTER_AREA if shrink < AREA_AVERAGE_BELOW else cv2.INTER_LINEAR
    if image.orientation == 1:
        cv2.resize(pixels, stored_wh, dst=area, interpolation=interpolation)
    else:
        area[...] = _oriented(
            cv2.resize(pixels, stored_wh, interpolation=interpolation), image.orientation
        )
    # A reduced image covers up to k - 1 more pixels than there are (see `EncodedImage.decode`), at
    # its right and bottom as stored.
    covered = (reduction * width_px, reduction * height_px)
    if image.swaps_axes:
        covered = covered[::-1]
    scale_x, scale_y = fitted_wh[0] / covered[0], fitted_wh[1] / covered[1]
    pad_x = left + (covered[0] - width) * scale_x * (image.orientation in MIRRORED_X)
    pad_y = top + (covered[1] - height) * scale_y * (image.orientation in MIRRORED_Y)
    return Geometry(np.array((scale_x, scale_y, pad_x, pad_y, width, height), np.float32))


def _fitted_size(size_wh: tuple[int, int], settings: PreprocessSettings) -> tuple[int, int]:
    """Width and height that an image takes in the model's input."""
    if settings.resize == "stretch":
        return settings.width, settings.height
    width, height = size_wh
    scale = min(settings.width / width, settings.height / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _oriented(pixels: UInt8Array, orientation: int) -> UInt8Array:
    """Apply an EXIF orientation (CIPA DC-008: 2-4 mirror or turn, 5-8 swap the axes as well)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in MIRRORED_X:
        pixels = pixels[:, ::-1]
    if orientation in MIRRORED_Y:
        pixels = pixels[::-1]
    return pixels
