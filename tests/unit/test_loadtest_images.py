"""The images that the load test sends."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from loadtest.images import load_images


def test_the_photos_of_the_demo_are_the_default() -> None:
    images = load_images(None, mixed_sizes=False)
    assert len(images) == 4
    assert all(image.data.startswith(b"\xff\xd8") and image.size == "" for image in images)


def test_a_folder_of_images_is_sent_as_it_is(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (40, 20), "red").save(stream, "PNG")
    (tmp_path / "red.PNG").write_bytes(stream.getvalue())
    (tmp_path / "notes.txt").write_text("no image")
    assert [image.data for image in load_images(tmp_path, mixed_sizes=False)] == [stream.getvalue()]


def test_mixed_sizes_keep_the_shape(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "red.png")
    sizes = {}
    for image in load_images(tmp_path, mixed_sizes=True):
        with Image.open(io.BytesIO(image.data)) as opened:
            sizes[image.size] = opened.size
    assert sizes == {
        "320px": (320, 160),
        "640px": (640, 320),
        "1280px": (1280, 640),
        "1920px": (1920, 960),
    }


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no images there"):
        load_images(tmp_path, mixed_sizes=False)
