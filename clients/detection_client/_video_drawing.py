"""Detections drawn on a video's frame, in the style of `draw` at a fraction of its time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from detection_client._drawing import class_color, text_color
from detserve.detections import Detections

__all__ = ["draw_on_frame"]

_MIN_FONT_SIZE = 9


def draw_on_frame(
    pixels: npt.NDArray[Any], found: Detections, track_ids: Sequence[int | None] | None = None
) -> None:
    """Draw boxes and labels, in place.

    Args:
        pixels: uint8 [H, W, 3] BGR, changed.
        found: What was found in the frame.
        track_ids: The number of each detection's object, where there is one.
    """
    height, width = pixels.shape[:2]
    short_side = min(height, width)
    line_width = max(1, round(short_side / 200))
    font_size = max(_MIN_FONT_SIZE, round(short_side / 28))
    for place in reversed(range(len(found))):  # the best one on top
        x1, y1, x2, y2 = (round(float(value)) for value in found.boxes_xyxy[place])
        x1, x2 = (min(max(x, 0), width - 1) for x in (x1, x2))
        y1, y2 = (min(max(y, 0), height - 1) for y in (y1, y2))
        color = class_color(int(found.class_ids[place]))[::-1]
        cv2.rectangle(pixels, (x1, y1), (x2, y2), (0, 0, 0), line_width + 2)  # a dark rim
        cv2.rectangle(pixels, (x1, y1), (x2, y2), color, line_width)
    taken: list[tuple[int, int, int, int]] = []
    for place, one in enumerate(found):
        number = track_ids[place] if track_ids else None
        text = one.label if number is None else f"{one.label} #{number}"
        chip = _chip(f"{text} {one.score:.2f}", font_size, class_color(one.class_id))
        _place_chip(pixels, chip, one.box_xyxy, line_width, taken)


def _place_chip(
    pixels: npt.NDArray[Any],
    chip: npt.NDArray[np.uint8],
    box_xyxy: tuple[float, float, float, float],
    line_width: int,
    taken: list[tuple[int, int, int, int]],
) -> None:
    """Copy a label to where it is free: over the box, inside it, under it, else over it."""
    height, width = pixels.shape[:2]
    chip = chip[:, :width]
    tall, wide = chip.shape[:2]
    if tall > height / 4:  # the label would hide more than it tells
        return
    x1, y1, _, y2 = (round(value) for value in box_xyxy)
    places = [(x1, y1 - tall), (x1 + line_width, y1 + line_width), (x1, y2 + 1)]
    inside = [
        (min(max(left, 0), width - wide), min(max(top, 0), height - tall)) for left, top in places
    ]
    if y1 < tall:  # no room over the box
        inside = [*inside[1:], inside[0]]
    left, top = next(
        (
            (left, top)
            for left, top in inside
            if not any(
                left < x and u < left + wide and top < y and v < top + tall for u, v, x, y in taken
            )
        ),
        inside[0],
    )
    taken.append((left, top, left + wide, top + tall))
    pixels[top : top + tall, left : left + wide] = chip


@lru_cache(maxsize=1024)
def _chip(text: str, font_size: int, color: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """A label as pixels, uint8 [h, w, 3] BGR; labels come again in frame after frame."""
    font = ImageFont.load_default(font_size)
    left, top, _, bottom = font.getbbox("Ag")
    padding = max(2, round((bottom - top) * 0.3))
    wide = round(font.getlength(text)) + 2 * padding
    picture = Image.new("RGB", (wide, round(bottom - top) + 2 * padding), color)
    pen = ImageDraw.Draw(picture)
    pen.text((padding - left, padding - top), text, font=font, fill=text_color(color))
    return np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])
