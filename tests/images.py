"""Images for the tests: the four photos in several formats, odd ones, and broken ones."""

from __future__ import annotations

import io
import random
import zlib
from typing import Any

import numpy as np
from PIL import Image

from photos import PHOTOS, jpeg, photo_path

__all__ = ["broken_images", "encode", "odd_images", "photo", "png_declaring"]


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """An image as the bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def photo(name: str) -> Image.Image:
    """One of the four photos, in RGB."""
    with Image.open(photo_path(name)) as image:
        return image.convert("RGB")


def odd_images() -> dict[str, bytes]:
    """Images that are fine but out of the ordinary, by what is odd about them."""
    cat, cup = photo("chelsea"), photo("coffee")
    turned = Image.Exif()
    turned[0x0112] = 6
    faded = cup.copy()
    faded.putalpha(Image.linear_gradient("L").resize(cup.size))
    grey16 = Image.fromarray(np.asarray(cat.convert("L")).astype(np.uint16) * 257)
    return {
        **{f"{name}, JPEG": jpeg(name) for name in PHOTOS},
        "as shipped, PNG": photo_path("motorcycle_left").read_bytes(),
        "large JPEG": encode(cup.resize((3000, 2000)), "JPEG"),
        "tall JPEG": encode(cat.resize((40, 1600)), "JPEG"),
        "one pixel": encode(Image.new("RGB", (1, 1), "red"), "PNG"),
        "one row": encode(cat.resize((700, 1)), "BMP"),
        "no object": encode(Image.new("RGB", (320, 240), "grey"), "JPEG"),
        "grey JPEG": encode(cat.convert("L"), "JPEG"),
        "CMYK JPEG": encode(cat.convert("CMYK"), "JPEG"),
        "progressive JPEG": encode(cat, "JPEG", progressive=True),
        "turned JPEG": encode(cat.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=turned),
        "PNG with alpha": encode(faded, "PNG"),
        "16 bit PNG": encode(grey16, "PNG"),
        "palette PNG": encode(cup.quantize(32), "PNG"),
        "WebP": encode(cat, "WEBP", quality=80),
        "turned WebP": encode(cat, "WEBP", exif=turned),
        "TIFF": encode(cup, "TIFF", compression="tiff_lzw"),
        "turned TIFF": encode(cat, "TIFF", exif=turned),
    }


def png_declaring(width: int, height: int) -> bytes:
    """A PNG file of some 70 bytes whose header declares a size of its own."""
    data = bytearray(encode(Image.new("L", (1, 1)), "PNG"))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def broken_images(count: int = 400, seed: int = 0) -> list[tuple[str, bytes]]:
    """What is wrong, and the bytes; some of the bit-flipped ones may still be readable."""
    rng = random.Random(seed)
    small = photo("chelsea").resize((160, 120))
    good = {
        "JPEG": encode(small, "JPEG"),
        "progressive JPEG": encode(small, "JPEG", progressive=True),
        "CMYK JPEG": encode(small.convert("CMYK"), "JPEG"),
        "PNG": encode(small, "PNG"),
        "palette PNG": encode(small.quantize(16), "PNG"),
        "WebP": encode(small, "WEBP"),
        "BMP": encode(small, "BMP"),
        "TIFF": encode(small, "TIFF"),
        "LZW TIFF": encode(small, "TIFF", compression="tiff_lzw"),
    }
    broken = [
        ("empty", b""),
        ("one byte", b"\xff"),
        ("zero bytes", bytes(10_000)),
        ("text", b"I am no image. " * 50),
        ("HTML", b"<!doctype html><title>404</title>"),
        ("GIF", encode(small, "GIF")),
        ("PNG bomb", png_declaring(60_000, 60_000)),
        ("wide PNG bomb", png_declaring(2**31 - 1, 1)),
        ("empty PNG", png_declaring(0, 0)),
        ("over 20 MiB", bytes(21 * 2**20)),
        ("float TIFF", encode(Image.new("F", (9, 9)), "TIFF")),
    ]
    while len(broken) < count:
        kind, data = rng.choice(list(good.items()))
        damaged = bytearray(data)
        match rng.choice(("truncated", "bits flipped", "header damaged", "noise spliced in")):
            case "truncated":
                how = "truncated"
                del damaged[rng.randrange(1, len(damaged) * 9 // 10) :]
            case "bits flipped":
                how = "bits flipped"
                for _ in range(rng.choice((1, 8, 64))):
                    damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            case "header damaged":
                how = "header damaged"
                damaged[:4] = rng.randbytes(4)
            case _:
                how = "noise spliced in"
                at = rng.randrange(len(damaged))
                damaged[at:at] = rng.randbytes(rng.randrange(1, 200))
        broken.append((f"{kind}, {how}", bytes(damaged)))
    return broken
