"""Decoding and fitting, against Pillow and against the geometry itself."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image, ImageOps

from detserve.decoding import EncodedImage
from detserve.imaging import (
    Geometry,
    ImageError,
    ImageTooLargeError,
    PreprocessSettings,
    preprocess,
)

UInt8Array = npt.NDArray[np.uint8]


def photo(width: int = 160, height: int = 120) -> Image.Image:
    """A smooth picture with a red top left corner, so that every turn of it differs."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 - x * 255 // width, y * 255 // height, (x + y) % 256 // 2], axis=2)
    pixels[: height // 4, : width // 4] = (250, 10, 10)
    return Image.fromarray(pixels.astype(np.uint8))


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def fit(
    data: bytes, width: int = 96, height: int = 96, **given: Any
) -> tuple[UInt8Array, Geometry]:
    settings = PreprocessSettings(width=width, height=height, **{"resize": "stretch", **given})
    out = np.full((height, width, 3), 77, np.uint8)
    geometry = preprocess(data, settings, out)
    return out, geometry


def difference(a: UInt8Array, b: UInt8Array) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


GREY16 = Image.fromarray((np.mgrid[0:120, 0:160][1] * 400).astype(np.uint16))
GREY8 = Image.fromarray((np.mgrid[0:120, 0:160][1] * 400 / 257).round().astype(np.uint8))
ALPHA = photo()
ALPHA.putalpha(Image.fromarray((np.mgrid[0:120, 0:160][0] * 2).astype(np.uint8)))
PALETTE = photo().quantize(64)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encode(photo(), "JPEG", quality=95), photo(), id="JPEG"),
        pytest.param(encode(photo(), "JPEG", quality=95, progressive=True), photo(), id="progr."),
        pytest.param(encode(photo().convert("L"), "JPEG"), photo().convert("L"), id="grey JPEG"),
        pytest.param(encode(photo().convert("CMYK"), "JPEG", quality=95), photo(), id="CMYK JPEG"),
        pytest.param(encode(photo(), "PNG"), photo(), id="PNG"),
        pytest.param(encode(photo().convert("1"), "PNG"), photo().convert("1"), id="1 bit PNG"),
        pytest.param(encode(GREY16, "PNG"), GREY8, id="16 bit PNG"),
        pytest.param(
            encode(ALPHA, "PNG"),
            Image.composite(photo(), Image.new("RGB", (160, 120), "white"), ALPHA.split()[3]),
            id="PNG with alpha",
        ),
        pytest.param(encode(PALETTE, "PNG"), PALETTE.convert("RGB"), id="palette PNG"),
        pytest.param(encode(photo(), "WEBP", lossless=True), photo(), id="WebP"),
        pytest.param(encode(photo(), "BMP"), photo(), id="BMP"),
        pytest.param(encode(photo(), "TIFF"), photo(), id="TIFF"),
        pytest.param(encode(photo(), "TIFF", compression="tiff_lzw"), photo(), id="LZW TIFF"),
        pytest.param(encode(GREY16, "TIFF"), GREY8, id="16 bit TIFF"),
        pytest.param(encode(photo().convert("CMYK"), "TIFF"), photo(), id="CMYK TIFF"),
    ],
)
def test_formats(data: bytes, expected: Image.Image) -> None:
    out, geometry = fit(data, width=160, height=120)
    assert difference(out, np.asarray(expected.convert("RGB"))) < 2
    assert geometry.values.tolist() == [1, 1, 0, 0, 160, 120]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(
        photo(), image_format, exif=exif, **({"quality": 95} if image_format != "PNG" else {})
    )
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    out, geometry = fit(data, width=upright.width, height=upright.height)
    assert difference(out, np.asarray(upright)) < 2
    assert tuple(geometry.values[4:]) == upright.size


@pytest.mark.parametrize(
    ("settings", "size", "area", "scale"),
    [
        ({"resize": "letterbox"}, (192, 96), (0, 24, 96, 72), (0.5, 0.5)),
        ({"resize": "letterbox"}, (48, 96), (24, 0, 72, 96), (1, 1)),
        ({"resize": "letterbox", "anchor": "top-left"}, (192, 96), (0, 0, 96, 48), (0.5, 0.5)),
        ({"resize": "letterbox", "anchor": "top-left"}, (24, 48), (0, 0, 48, 96), (2, 2)),
        ({"resize": "letterbox"}, (96, 96), (0, 0, 96, 96), (1, 1)),
        ({"resize": "letterbox"}, (96, 1), (0, 47, 96, 48), (1, 1)),
        ({"resize": "stretch"}, (192, 48), (0, 0, 96, 96), (0.5, 2)),
    ],
)
def test_fit(
    settings: dict[str, Any],
    size: tuple[int, int],
    area: tuple[int, int, int, int],
    scale: tuple[float, float],
) -> None:
    data = encode(Image.new("RGB", size, (10, 200, 90)), "PNG")
    out, geometry = fit(data, pad_value=31, **settings)
    left, top, right, bottom = area
    inside = np.zeros((96, 96), bool)
    inside[top:bottom, left:right] = True
    assert (out[inside] == (10, 200, 90)).all()
    assert (out[~inside] == 31).all()
    assert geometry.values.tolist() == [*scale, left, top, *size]
    corners = np.array([area], np.float32)
    assert geometry.to_image(corners).tolist() == [[0, 0, *size]]


@pytest.mark.parametrize(
    ("size", "target", "decoded"),
    [
        ((800, 640), (96, 96), (200, 160)),  # 1/6 would do as well, but slowly
        ((191, 300), (96, 96), (191, 300)),
        ((192, 300), (96, 96), (96, 150)),
        ((768, 768), (96, 96), (96, 96)),
        ((50, 50), (96, 96), (50, 50)),
    ],
)
def test_a_large_jpeg_is_decoded_at_a_reduced_scale(
    size: tuple[int, int], target: tuple[int, int], decoded: tuple[int, int]
) -> None:
    for data in (
        encode(photo(*size), "JPEG", quality=95),
        encode(photo(*size).convert("CMYK"), "JPEG", quality=95),
    ):
        image = EncodedImage(data, max_bytes=2**20, max_pixels=2**20)
        pixels, reduction = image.decode(target)
        assert (pixels.shape[1], pixels.shape[0]) == decoded
        assert reduction == -(-size[0] // decoded[0])
        expected = photo(*size).resize(decoded, Image.Resampling.BOX)
        assert difference(pixels, np.asarray(expected)) < 4


def test_two_images_of_one_thread_do_not_share_their_result() -> None:
    first, _ = fit(encode(Image.new("RGB", (96, 96), "red"), "JPEG"))
    before = first.copy()
    fit(encode(Image.new("RGB", (96, 96), "blue"), "JPEG"))
    assert (first == before).all()


def bomb() -> bytes:
    """A PNG that declares 60,000 x 60,000 pixels in 67 bytes."""
    header = bytearray(encode(Image.new("L", (1, 1)), "PNG"))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    return bytes(header)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"hello, I am no image", "not a JPEG, PNG, WebP, BMP or TIFF", id="text"),
        pytest.param(encode(photo(), "GIF"), "not a JPEG, PNG, WebP", id="another format"),
        pytest.param(encode(photo(), "JPEG")[:-300], "truncated", id="truncated JPEG"),
        pytest.param(encode(photo(), "PNG")[:-300], "truncated", id="truncated PNG"),
        pytest.param(encode(photo(), "JPEG")[:20], "header is corrupt", id="JPEG's first bytes"),
        pytest.param(encode(Image.new("F", (9, 9)), "TIFF"), "32-bit samples", id="float TIFF"),
    ],
)
def test_unreadable(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        fit(data)


@pytest.mark.parametrize(
    ("data", "limit", "message"),
    [
        (encode(photo(), "BMP"), {"max_bytes": 1000}, "57,654 bytes; the limit is 1,000"),
        (encode(photo(), "PNG"), {"max_pixels": 19_199}, "160 x 120 = 19,200 pixels"),
        (bomb(), {}, "pixels"),
    ],
)
def test_limits(data: bytes, limit: dict[str, int], message: str) -> None:
    with pytest.raises(ImageTooLargeError, match=message):
        fit(data, **limit)


def test_at_the_limits() -> None:
    data = encode(photo(), "PNG")
    fit(data, max_bytes=len(data), max_pixels=160 * 120)


def test_stray_bytes_do_not_hide_a_truncation() -> None:
    data = encode(photo(640, 480), "JPEG", progressive=True)
    second_scan = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    damaged = data[:second_scan] + b"\0\0\0" + data[second_scan:]
    with pytest.raises(ImageError, match="truncated or corrupt"):
        fit(damaged[: len(damaged) // 2])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(2401, 1801), (1207, 903)])
def test_boxes_are_not_shifted_by_a_reduced_scale(size: tuple[int, int], orientation: int) -> None:
    pixels = np.full((size[1], size[0], 3), 255, np.uint8)
    box = (round(size[0] * 0.9), round(size[1] * 0.8))  # top left corner of a dark area
    pixels[box[1] :, box[0] :] = 0
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(pixels)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encode(stored, "PNG", exif=exif))))
    dark = np.argwhere(np.asarray(upright.convert("L")) < 128)
    (top, left), (bottom, right) = dark.min(axis=0), dark.max(axis=0) + 1

    def edge(profile: UInt8Array) -> float:
        """Where brightness crosses the middle, in pixels."""
        values = profile.astype(float)
        crossing = int(np.flatnonzero(np.diff(values > 128))[0])
        step = (128 - values[crossing]) / (values[crossing + 1] - values[crossing])
        return float(crossing + 0.5 + step)

    out, geometry = fit(encode(stored, "JPEG", quality=95, exif=exif), width=300, height=300)
    grey = out[:, :, 0]
    at = geometry.values
    row = int((top + bottom) / 2 * at[1] + at[3])
    column = int((left + right) / 2 * at[0] + at[2])
    found = np.array([[edge(grey[row]), edge(grey[:, column])] * 2], np.float32)
    x, y = geometry.to_image(found)[0, :2]
    # Of the 8 pixels that the scale 1/8 makes one of; uncorrected it would be up to 7.
    assert min(abs(x - left), abs(x - right)) < 1
    assert min(abs(y - top), abs(y - bottom)) < 1


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_too_many_scans(mode: str) -> None:
    data = encode(photo().convert(mode), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="scans"):
        fit(data[:start] + data[start:-2] * 200 + data[-2:])


def test_too_large_tiles() -> None:
    stream = io.BytesIO()
    pixels = np.zeros((10, 10), np.uint8)
    tifffile.imwrite(stream, pixels, tile=(1024, 1024), photometric="minisblack")
    with pytest.raises(ImageTooLargeError, match="tiles of 1024 x 1024"):
        fit(stream.getvalue(), max_pixels=1_000_000)
    fit(stream.getvalue(), max_pixels=1024 * 1024)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_polarity_of_16_bit_tiff(photometric: str) -> None:
    samples = np.full((96, 96), 60_000, np.uint16)
    stream = io.BytesIO()
    tifffile.imwrite(stream, samples, photometric=photometric)
    expected = 60_000 if photometric == "minisblack" else 65_535 - 60_000
    assert abs(int(fit(stream.getvalue())[0][0, 0, 0]) - expected / 257) < 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"resize": "squash"}, "resize"),
        ({"anchor": "left"}, "anchor"),
        ({"pad_value": "256"}, "pad_value"),
        ({"pad_value": "grey"}, "must be int"),
        ({"max_bytes": "0"}, "max_bytes"),
        ({"colour": "red"}, "unknown parameter 'colour'"),
    ],
)
def test_wrong_parameters(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreprocessSettings.from_parameters(parameters, width=96, height=96)


def test_parameters() -> None:
    parameters = {"resize": "letterbox", "anchor": "top-left", "pad_value": "0", "max_bytes": "9"}
    assert PreprocessSettings.from_parameters(parameters, width=4, height=3) == PreprocessSettings(
        width=4, height=3, resize="letterbox", anchor="top-left", pad_value=0, max_bytes=9
    )
