"""What a caller may give as an image and as options, checked before anything is sent."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from detection_client import InvalidInputError, encode_array
from detection_client._images import describe_image, read_image
from detection_client._tensors import Options
from detserve.imaging import PreprocessSettings, preprocess

NOISE: npt.NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (37, 53, 4), np.uint8)


def decoded(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("encoding", ["bmp", "png"])
def test_arrays_are_encoded_without_loss(encoding: Any) -> None:
    rgb, grey = NOISE[..., :3], NOISE[..., 0]
    np.testing.assert_array_equal(decoded(encode_array(rgb, encoding)), rgb)
    np.testing.assert_array_equal(decoded(encode_array(grey, encoding))[..., 1], grey)
    np.testing.assert_array_equal(decoded(encode_array(rgb[::-2, ::3], encoding)), rgb[::-2, ::3])


def test_jpeg_is_close() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(64, axis=0)
    difference = np.abs(decoded(encode_array(ramp, "jpeg")).astype(int) - ramp)
    assert difference.max() <= 2


def test_transparency_is_laid_over_white_as_the_server_does() -> None:
    buffer = io.BytesIO()
    Image.fromarray(NOISE).save(buffer, "PNG")
    settings = PreprocessSettings(
        width=53, height=37, resize="stretch", max_bytes=10**6, max_pixels=10**6
    )
    images = [np.empty((37, 53, 3), np.uint8) for _ in range(2)]
    for data, image in zip((buffer.getvalue(), encode_array(NOISE)), images, strict=True):
        preprocess(data, settings, image)
    np.testing.assert_array_equal(images[0], images[1])


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.empty((0, 5, 3), np.uint8), "empty"),
        (np.empty((5, 0), np.uint8), "empty"),
        (np.zeros((4, 4, 3), np.float32), "uint8, not float32"),
        (np.zeros((4, 4, 3), bool), "uint8, not bool"),
        (np.zeros((4, 4, 2), np.uint8), r"not \[4, 4, 2\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"not \[1, 4, 4, 3\]"),
        (np.zeros((3, 8, 9), np.uint8), r"must be \[H, W, 3\]"),
        (np.zeros(4, np.uint8), r"not \[4\]"),
        (np.zeros((1, 70_000, 3), np.uint8), None),
    ],
)
def test_arrays_refused(array: npt.NDArray[Any], says: str | None) -> None:
    if says is None:  # longer than a JPEG can be
        with pytest.raises(InvalidInputError, match="cannot encode"):
            encode_array(array, "jpeg")
    else:
        with pytest.raises(InvalidInputError, match=says):
            encode_array(array)


def test_bytes_and_paths(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"data")
    for image in (file, str(file), b"data", bytearray(b"data"), memoryview(b"data")):
        assert read_image(image) == b"data"


def test_unreadable(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jpg"
    empty.touch()
    cases: list[tuple[Any, str]] = [
        (b"", "empty"),
        (empty, "empty.jpg is empty"),
        (tmp_path / "none.jpg", "none.jpg: no such file"),
        (tmp_path, "is a directory"),
        ("null\0", "null"),
        (17, "not int"),
        (None, "not NoneType"),
        (Image.new("RGB", (2, 2)), "NumPy array"),
    ]
    for image, says in cases:
        with pytest.raises(InvalidInputError, match=says):
            read_image(image)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_file(tmp_path: Path) -> None:
    file = tmp_path / "secret.jpg"
    file.write_bytes(b"data")
    file.chmod(0)
    with pytest.raises(InvalidInputError, match="permission denied"):
        read_image(file)


@pytest.mark.parametrize(
    "options",
    [
        {"score_threshold": -0.01},
        {"score_threshold": 1.5},
        {"score_threshold": float("nan")},
        {"score_threshold": "0.5"},
        {"score_threshold": True},
        {"iou_threshold": 2},
        {"max_detections": 0},
        {"max_detections": 2.5},
        {"max_detections": float("inf")},
        {"max_detections": 2**31},
    ],
    ids=str,
)
def test_options_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        Options(**options)


def test_options_accepted() -> None:
    numpy_scalars: Any = np.float32(0.5), np.float64(0), np.int64(3)
    Options(*numpy_scalars)
    Options(1, 1.0, 300)


def test_descriptions() -> None:
    assert describe_image("photos/a.jpg") == "photos/a.jpg"
    assert describe_image(Path("a.jpg")) == "a.jpg"
    assert describe_image(b"abc") == "3 bytes"
    assert describe_image(NOISE) == "array [37, 53, 4]"
