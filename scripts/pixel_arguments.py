"""Arguments of command lines that say how a model takes images."""

from __future__ import annotations

import argparse
import math

__all__ = ["scale", "size", "three"]


def size(text: str) -> tuple[int, int]:
    """Width and height in pixels: `640`, or `640x384`."""
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size: give 640, or 640x384 (width, height)"
        )
    return int(parts[0]), int(parts[-1])


def three(text: str) -> tuple[float, float, float]:
    """One number for each channel: `127.5`, or `123.7,116.3,103.5`."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(f"{text!r} is not one number, or three with commas")
    return numbers[0], numbers[1], numbers[2]


def scale(text: str) -> tuple[float, float, float]:
    """The same, to divide by."""
    numbers = three(text)
    if min(numbers) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: only by numbers over 0 can be divided")
    return numbers
