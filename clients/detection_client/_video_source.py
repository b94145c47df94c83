"""What on the command line is a video, and opening it."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from detection_client._errors import DetectionClientError

__all__ = ["VideoError", "VideoSource", "find_videos", "open_video"]

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts",
     ".wmv", ".flv", ".ogv", ".3gp", ".mjpeg", ".mjpg", ".h264", ".h265", ".hevc"}
)  # fmt: skip
LIVE_SCHEMES = frozenset({"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt"})
WEB_SCHEMES = frozenset({"http", "https"})
# A server that has gone silent must not hold a thread for ever.
OPEN_TIMEOUT_MS = 5_000
READ_TIMEOUT_MS = 5_000
# UDP, FFmpeg's first choice for RTSP, loses packets and does not pass many firewalls.
FFMPEG_OPTIONS = ("OPENCV_FFMPEG_CAPTURE_OPTIONS", "rtsp_transport;tcp")


class VideoError(DetectionClientError):
    """A video cannot be opened, or a live one was lost for too long."""


@dataclass(frozen=True, slots=True)
class VideoSource:
    """One video to read.

    Attributes:
        name: As shown to people: without a password that its URL may hold.
        target: A path or URL, or the number of a camera.
        live: Whether frames come at their own pace, whatever the reader does.
    """

    name: str
    target: str | int
    live: bool

    @classmethod
    def camera(cls, number: int) -> VideoSource:
        """The camera of this number, 0 for the first."""
        return cls(f"camera {number}", number, True)

    @property
    def stem(self) -> str:
        """A name for a file that is made of this video."""
        if isinstance(self.target, int):
            return f"camera-{self.target}"
        if "://" not in self.target:
            return Path(self.target).stem
        parts = urlsplit(self.target)
        text = f"{parts.hostname or 'stream'}{parts.path}".rstrip("/")
        return "".join(char if char.isalnum() or char in "-_." else "-" for char in text)


def find_videos(arguments: Iterable[str]) -> tuple[list[VideoSource], list[str]]:
    """Tell videos from photos, by URL scheme and suffix.

    Returns:
        The videos, patterns such as ``clips/*.mp4`` expanded, and the arguments that are none.
    """
    videos: list[VideoSource] = []
    others: list[str] = []
    for argument in arguments:
        scheme = urlsplit(argument).scheme.lower() if "://" in argument else ""
        if scheme in LIVE_SCHEMES or scheme in WEB_SCHEMES:
            is_file = scheme in WEB_SCHEMES and _is_video(urlsplit(argument).path)
            videos.append(VideoSource(_without_password(argument), argument, not is_file))
        elif _is_video(argument) and not Path(argument).is_dir():
            matches = [argument]
            if not Path(argument).exists() and glob.has_magic(argument):
                matches = sorted(glob.glob(argument, recursive=True)) or matches  # noqa: PTH207
            videos += [VideoSource(match, match, False) for match in matches]
        else:
            others.append(argument)
    return videos, others


def _is_video(path: str) -> bool:
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{host}"))


def open_video(source: VideoSource) -> Any:
    """A ``cv2.VideoCapture`` that is open.

    Raises:
        VideoError: There is no such file, camera or stream, or it is no video.
    """
    os.environ.setdefault(*FFMPEG_OPTIONS)  # read at every opening
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "8")  # fatal errors alone; the rest is ours
    import cv2  # takes a while to load, and photos do without

    cv2.setLogLevel(0)
    if isinstance(source.target, int):
        capture = cv2.VideoCapture(source.target)
    else:
        if "://" not in source.target and not Path(source.target).is_file():
            raise VideoError(f"{source.name}: there is no such file")
        timeouts = [
            *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS),
            *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS),
        ]
        capture = cv2.VideoCapture(source.target, cv2.CAP_FFMPEG, timeouts)
    if not capture.isOpened():
        capture.release()
        if isinstance(source.target, int):
            raise VideoError(f"{source.name}: there is no such camera, or another program uses it")
        what = "no answer, or no video at this address" if "://" in source.target else "no video"
        raise VideoError(f"cannot open {source.name}: {what}")
    return capture
