"""Detections drawn over their picture."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from detection_client._images import over_white
from detserve.detections import Detection, Detections

__all__ = ["class_color", "draw", "text_color"]

Color: TypeAlias = tuple[int, int, int]
Font: TypeAlias = "ImageFont.FreeTypeFont | ImageFont.ImageFont"

_GOLDEN_RATIO = 0.618034
_SHADES = ((0.80, 0.95), (0.95, 0.70), (0.50, 0.95))  # saturation, value
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_SHADOW = (0, 0, 0, 110)
_MIN_FONT_SIZE = 9


def draw(image: Image.Image | npt.NDArray[Any], detections: Detections) -> Image.Image:
    """Draw boxes and labels over a copy of a picture.

    Lines and letters grow with the picture, a class has the same colour in every picture, and
    the labels stay inside the picture and off each other where there is room.

    Args:
        image: A Pillow image, whose EXIF orientation is applied, or uint8 [H, W, 3] RGB,
            [H, W] grey or [H, W, 4] RGBA.
        detections: What was found in it, with boxes in its pixels.

    Returns:
        An RGB image of the picture's size.
    """
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    canvas = _to_rgb(ImageOps.exif_transpose(image))
    short_side = min(canvas.size)
    line_width = max(1, round(short_side / 200))
    font = ImageFont.load_default(max(_MIN_FONT_SIZE, short_side / 28))
    pen = ImageDraw.Draw(canvas, "RGBA")
    shown = [_clipped(found, canvas.size) for found in detections]
    for found in reversed(shown):  # the best one on top
        _draw_box(pen, found, line_width)
    taken: list[_Chip] = []
    for found in shown:
        chip = _place_label(pen, found, font, line_width, taken, canvas.size)
        if chip is not None:
            taken.append(chip)
            _draw_label(pen, chip, class_color(found.class_id), font)
    return canvas


def class_color(class_id: int) -> Color:
    """A colour for a class: always the same, and unlike those of its neighbours."""
    saturation, value = _SHADES[class_id % len(_SHADES)]
    red, green, blue = colorsys.hsv_to_rgb(class_id * _GOLDEN_RATIO % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        samples = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((samples + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        return over_white(image)
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def _clipped(found: Detection, size_wh: tuple[int, int]) -> Detection:
    width, height = size_wh
    x1, y1, x2, y2 = found.box_xyxy
    x1, x2 = (min(max(x, 0), width - 1) for x in (x1, x2))
    y1, y2 = (min(max(y, 0), height - 1) for y in (y1, y2))
    return Detection(found.class_id, found.label, found.score, (x1, y1, max(x1, x2), max(y1, y2)))


def _draw_box(pen: ImageDraw.ImageDraw, found: Detection, line_width: int) -> None:
    x1, y1, x2, y2 = (round(value) for value in found.box_xyxy)
    edge = max(1, line_width // 3)  # a dark rim keeps the line visible on its own colour
    pen.rectangle((x1 - edge, y1 - edge, x2 + edge, y2 + edge), outline=_SHADOW, width=edge)
    inner = (x1 + line_width, y1 + line_width, x2 - line_width, y2 - line_width)
    if inner[0] + edge < inner[2] and inner[1] + edge < inner[3]:
        pen.rectangle(inner, outline=_SHADOW, width=edge)
    pen.rectangle((x1, y1, x2, y2), outline=class_color(found.class_id), width=line_width)


class _Chip(NamedTuple):
    """Where a label goes: its rectangle in pixels, its padding and its text."""

    left: float
    top: float
    right: float
    bottom: float
    padding: float
    text: str

    def overlaps(self, other: _Chip) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def _place_label(
    pen: ImageDraw.ImageDraw,
    found: Detection,
    font: Font,
    line_width: int,
    taken: list[_Chip],
    size_wh: tuple[int, int],
) -> _Chip | None:
    """The best free place for a label, or the first where none is free; none in a tiny picture."""
    width, height = size_wh
    ascent, descent = _metrics(font)
    padding = max(1, round((ascent + descent) * 0.2))
    chip_height = ascent + descent + padding
    text = _fitting_text(pen, found, font, width - 2 * padding)
    if text is None or chip_height > height / 4:  # the label would hide more than it tells
        return None
    chip_width = pen.textlength(text, font=font) + 2 * padding
    first = None
    for left, top in _places(found.box_xyxy, chip_width, chip_height, line_width):
        left = min(max(left, 0), width - chip_width)
        top = min(max(top, 0), height - chip_height)
        chip = _Chip(left, top, left + chip_width, top + chip_height, padding, text)
        if not any(chip.overlaps(other) for other in taken):
            return chip
        first = first or chip
    return first


def _metrics(font: Font) -> tuple[int, int]:
    if isinstance(font, ImageFont.FreeTypeFont):
        return font.getmetrics()
    return 11, 0  # Pillow's bitmap font, where it was built without FreeType


def _places(
    box_xyxy: tuple[float, float, float, float], width: float, height: float, line_width: int
) -> Iterator[tuple[float, float]]:
    """Left and top of a label, best first: over the box, inside it, under it, down its side."""
    x1, y1, x2, y2 = box_xyxy
    if y1 >= height:
        yield x1, y1 - height
        yield x2 + 1 - width, y1 - height
    yield x1 + line_width, y1 + line_width
    yield x2 - line_width - width, y1 + line_width
    yield x1, y2 + 1
    yield x1 + line_width, y2 - line_width - height
    step = height
    while y1 + step < y2:
        yield x1 + line_width, y1 + line_width + step
        step += height


def _fitting_text(
    pen: ImageDraw.ImageDraw, found: Detection, font: Font, max_width: float
) -> str | None:
    """The label and its score, or as much of them as the picture has room for."""
    full = f"{found.label} {found.score:.2f}"
    shortened = (f"{found.label[:end]}…" for end in range(len(found.label) - 1, 1, -1))
    for text in (full, found.label, *shortened):
        if pen.textlength(text, font=font) <= max_width:
            return text
    return None


def _draw_label(pen: ImageDraw.ImageDraw, chip: _Chip, color: Color, font: Font) -> None:
    area = (round(chip.left), round(chip.top), round(chip.right) - 1, round(chip.bottom) - 1)
    pen.rounded_rectangle(area, radius=chip.padding, fill=color)
    position = (area[0] + chip.padding, area[1] + chip.padding // 2)
    pen.text(position, chip.text, font=font, fill=text_color(color))


def text_color(background: Color) -> Color:
    """Black or white on a background, whichever is in greater contrast as WCAG 2 defines it."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in background)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return _BLACK if (luminance + 0.05) ** 2 > 1.05 * 0.05 else _WHITE
