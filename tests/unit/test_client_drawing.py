"""Annotated pictures: sizes, modes, colours, and labels that stay where they can be read."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFont

from detection_client import Detection, Detections, draw
from detection_client._drawing import _place_label, class_color

LABELS = ("person", "dog", "traffic light")


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int32), LABELS)


def pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(image)


def test_nothing_found_leaves_the_picture_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    picture = draw(image, Detections.empty())
    np.testing.assert_array_equal(pixels(picture), image)


def test_the_original_is_left_alone() -> None:
    image = Image.new("RGB", (300, 200), "grey")
    before = image.tobytes()
    assert draw(image, detections((10, 10, 100, 100, 0.9, 0))).tobytes() != before
    assert image.tobytes() == before


def test_the_box_has_the_colour_of_its_class() -> None:
    picture = pixels(
        draw(np.zeros((400, 400, 3), np.uint8), detections((50, 80, 200, 300, 0.9, 1)))
    )
    for x, y in ((50, 200), (200, 200), (125, 80), (125, 300)):
        assert tuple(picture[y, x]) == class_color(1)
    assert tuple(picture[200, 125]) == (0, 0, 0)


@pytest.mark.parametrize(
    "size_wh", [(1, 1), (2, 9), (30, 20), (90, 900), (1200, 60), (640, 480), (3000, 2000)]
)
def test_any_size(size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    found = detections(
        (0, 0, width, height, 0.99, 0),
        (-50, -50, width + 50, height + 50, 0.9, 1),
        (width / 2, height / 2, width / 2, height / 2, 0.5, 2),
        (width - 1, height - 1, width, height, 0.4, 2),
        (width * 2, height * 2, width * 3, height * 3, 0.3, 1),
    )
    assert draw(np.full((height, width, 3), 90, np.uint8), found).size == size_wh


def test_lines_grow_with_the_picture() -> None:
    thickness = []
    for scale in (1, 4):
        picture = pixels(
            draw(
                np.zeros((400 * scale, 600 * scale, 3), np.uint8),
                detections((100 * scale, 100 * scale, 500 * scale, 390 * scale, 0.9, 0)),
            )
        )
        line = (picture[300 * scale] == class_color(0)).all(axis=1)
        thickness.append(int(line.sum()))
    assert thickness[1] == 4 * thickness[0]


@pytest.mark.parametrize(
    ("mode", "color"),
    [("L", 99), ("RGBA", (9, 9, 9, 0)), ("P", 3), ("I;16", 9999), ("CMYK", (9, 9, 9, 9)), ("1", 1)],
)
def test_any_mode(mode: str, color: Any) -> None:
    picture = draw(Image.new(mode, (200, 100), color), detections((10, 10, 99, 90, 0.9, 0)))
    assert (picture.mode, picture.size) == ("RGB", (200, 100))
    if mode == "RGBA":
        assert picture.getpixel((150, 50)) == (255, 255, 255)
    if mode == "I;16":
        assert picture.getpixel((150, 50)) == (39, 39, 39)


def test_arrays_of_grey() -> None:
    picture = draw(np.full((100, 200), 77, np.uint8), detections((10, 10, 99, 90, 0.9, 0)))
    assert picture.getpixel((150, 50)) == (77, 77, 77)


def test_exif_orientation_is_applied_first() -> None:
    image = Image.new("RGB", (400, 100), "black")
    image.getexif()[0x0112] = 6
    picture = draw(image, detections((10, 300, 90, 390, 0.9, 0)))
    assert picture.size == (100, 400)
    assert picture.getpixel((10, 350)) == class_color(0)
    assert picture.getexif().get(0x0112, 1) == 1


def test_colours_are_stable_and_distinct() -> None:
    colors = [class_color(index) for index in range(80)]
    assert colors == [class_color(index) for index in range(80)]
    distances = [
        np.abs(np.subtract(first, second)).sum()
        for first, second in itertools.combinations(colors[:20], 2)
    ]
    assert min(distances) > 40
    assert len(set(colors)) == 80


def test_labels_stay_inside_and_off_each_other() -> None:
    size_wh = 800, 600
    pen = ImageDraw.Draw(Image.new("RGB", size_wh))
    font = ImageFont.load_default(18)
    random = np.random.default_rng(1)
    taken: list[Any] = []
    for _ in range(12):
        x, y = random.uniform(-50, 800), random.uniform(-50, 600)
        found = Detection(2, "traffic light", 0.5, (x, y, x + 150, y + 150))
        chip = _place_label(pen, found, font, 2, taken, size_wh)
        assert chip is not None
        assert chip.left >= 0
        assert chip.top >= 0
        assert chip.right <= 800
        assert chip.bottom <= 600
        assert not any(chip.overlaps(other) for other in taken)
        taken.append(chip)


def test_a_label_too_long_is_shortened_and_a_tiny_picture_has_none() -> None:
    pen = ImageDraw.Draw(Image.new("RGB", (50, 200)))
    font = ImageFont.load_default(10)
    found = Detection(2, "traffic light", 0.5, (0, 0, 60, 60))
    chip = _place_label(pen, found, font, 1, [], (50, 200))
    assert chip is not None
    assert chip.text.startswith("tra")
    assert chip.text.endswith("…")
    assert _place_label(pen, found, font, 1, [], (60, 30)) is None
    assert _place_label(pen, found, font, 1, [], (9, 200)) is None
