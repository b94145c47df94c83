"""The command's options."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from detection_client._base import DEFAULT_MODEL, DEFAULT_TIMEOUT_S
from detserve import __version__

__all__ = ["DEFAULT_SERVER", "SERVER_VARIABLE", "make_parser"]

DEFAULT_SERVER = "grpc://127.0.0.1:8001"
SERVER_VARIABLE = "DETSERVE_SERVER"

_DESCRIPTION = "Detect the objects in photos or videos with a DetServe server."
_EPILOG = f"""\
examples:
  detect photo.jpg                             a table of what is found
  detect photos/ --save annotated/             and pictures with the boxes drawn in
  detect 'photos/**/*.jpg' --json | jq .image  JSON lines, one for each photo
  detect photo.jpg --server http://gpu-box:8000 --score-threshold 0.6
  detect photo.jpg --local                     the same without a server
  curl -s https://example.org/cat.jpg | detect -
  detect street.mp4 --save annotated/ --track  a video with boxes and the objects' numbers
  detect rtsp://camera/live --camera 0 --show  two live videos at once, in a window
  detect 'clips/*.mp4' --json > found.jsonl    JSON lines, one for each frame

Into a pipe or a file JSON lines are written, also without --json. The variable {SERVER_VARIABLE}
names the server too; `make serve` starts one.

exit status: 0 all detected, 1 some photos, frames or videos failed, 2 wrong usage or no server
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="detect",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="a photo, a folder, a pattern in quotes, or - for standard input; or a video's file"
        " or URL (rtsp://, http://)",
    )
    add(
        "--server",
        metavar="URL",
        help="grpc://host:8001 or http://host:8000; several as grpc://a:8001,b:8001"
        f" (now: {os.environ.get(SERVER_VARIABLE) or DEFAULT_SERVER})",
    )
    add("--local", action="store_true", help="detect in this process, without a server")
    add(
        "--repository",
        type=Path,
        metavar="DIR",
        help="the model repository for --local (default: model_repository here, or the clone's)",
    )
    add("--model", default=DEFAULT_MODEL, help="the served model (default: %(default)s)")
    add("--score-threshold", type=_fraction, metavar="S", help="lowest score to report, 0 to 1")
    add(
        "--iou-threshold",
        type=_fraction,
        metavar="IOU",
        help="overlap above which the lower of two boxes goes, 0 to 1",
    )
    add("--max-detections", type=_count, metavar="N", help="most detections for a photo")
    add(
        "--save",
        type=Path,
        metavar="DIR",
        help="write annotated pictures, or videos, into this folder",
    )
    add("--json", action="store_true", help="JSON lines, also on a terminal")
    add(
        "--timeout",
        type=_seconds,
        default=DEFAULT_TIMEOUT_S,
        metavar="SECONDS",
        help="longest wait for a photo's answer (default: %(default)g)",
    )
    add(
        "--concurrency",
        type=_count,
        default=4,
        metavar="N",
        help="requests under way at once (default: %(default)s)",
    )
    video = parser.add_argument_group("videos")
    video.add_argument(
        "--camera",
        type=_whole,
        action="append",
        default=[],
        metavar="NUMBER",
        help="a camera of this machine, 0 for the first; may be given several times",
    )
    video.add_argument("--track", action="store_true", help="number the objects across frames")
    video.add_argument("--show", action="store_true", help="show the frames in a window")
    video.add_argument(
        "--reconnect-for",
        type=_seconds,
        default=60.0,
        metavar="SECONDS",
        help="how long a lost live video is tried again (default: %(default)g)",
    )
    video.add_argument(
        "--jpeg-quality",
        type=_quality,
        default=90,
        metavar="Q",
        help="in which frames are sent, 1 to 100 (default: %(default)s)",
    )
    add("--version", action="version", version=f"detect (DetServe) {__version__}")
    return parser


def _fraction(text: str) -> float:
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _count(text: str) -> int:
    value = _number(text)
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return int(value)


def _whole(text: str) -> int:
    value = _number(text)
    if value < 0 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0")
    return int(value)


def _quality(text: str) -> int:
    value = _count(text)
    if value > 100:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and 100")
    return value


def _seconds(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value
