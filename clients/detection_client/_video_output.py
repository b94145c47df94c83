"""Where a video's results go: annotated files, and figures about each stream."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from rich.table import Table

from detection_client._errors import DetectionClientError
from detection_client._reader import VideoReader
from detection_client._video import FrameReport
from detection_client._video_source import VideoSource

__all__ = ["StreamFigures", "VideoFile", "VideoSaveError", "figures_table", "video_paths"]

RECENT = 100  # frames of which the progress shows figures
KEPT = 100_000  # latencies kept for the summary: of an endless stream the latest ones


class VideoSaveError(DetectionClientError):
    """The annotated video could not be written."""


def video_paths(sources: Iterable[VideoSource], folder: Path) -> list[Path]:
    """Where each video's annotated copy is saved: under its own name, no two under one.

    Raises:
        ValueError: A file would replace one of the videos themselves.
    """
    sources = list(sources)
    originals = {Path(one.target).resolve() for one in sources if isinstance(one.target, str)}
    paths: list[Path] = []
    taken: set[str] = set()
    for source in sources:
        path = folder / f"{source.stem}.mp4"
        number = 1
        while path.name.lower() in taken:
            number += 1
            path = folder / f"{source.stem}-{number}.mp4"
        if path.resolve() in originals:
            raise ValueError(f"would replace the video {path}; choose another folder")
        taken.add(path.name.lower())
        paths.append(path)
    return paths


class VideoFile:
    """An MP4 that gets its name when it is complete, so that no half of one is taken for a whole.

    A frame of another size, as a camera may give after it was lost, begins a further file. Safe to
    close while another thread writes.

    Args:
        path: The file; the second would be ``name-part2.mp4``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._writer: Any = None
        self._size_wh = (0, 0)
        self._parts = 0
        self._closed = False

    def write(self, pixels: npt.NDArray[np.uint8], fps: float) -> None:
        """Add a frame, uint8 [H, W, 3] BGR.

        Raises:
            VideoSaveError: The file cannot be written.
        """
        size_wh = (pixels.shape[1], pixels.shape[0])
        with self._lock:
            if self._closed:
                return
            if self._writer is None or size_wh != self._size_wh:
                self._finish()
                self._parts += 1
                code = cv2.VideoWriter.fourcc(*"mp4v")
                self._writer = cv2.VideoWriter(str(self._partial), code, fps, size_wh)
                self._size_wh = size_wh
                if not self._writer.isOpened():
                    self._partial.unlink(missing_ok=True)
                    self._writer = None
                    raise VideoSaveError(f"cannot write {self.path}")
            self._writer.write(pixels)

    def close(self) -> None:
        """Complete the file.

        Raises:
            VideoSaveError: The file cannot be written.
        """
        with self._lock:
            self._closed = True
            self._finish()

    @property
    def _partial(self) -> Path:
        return self.path.with_name(f".{self.path.stem}.{os.getpid()}.part.mp4")

    def _finish(self) -> None:
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        name = self.path
        if self._parts > 1:
            name = name.with_name(f"{name.stem}-part{self._parts}{name.suffix}")
        try:
            self._partial.replace(name)
        except OSError as error:
            raise VideoSaveError(f"cannot write {name}: {error.strerror}") from error


class StreamFigures:
    """Counts and times of one stream.

    Attributes:
        frames: Frames that have been answered or have failed.
        failures: How many of them failed.
    """

    def __init__(self, reader: VideoReader) -> None:
        self.frames = 0
        self.failures = 0
        self._reader = reader
        self._latencies_ms: deque[float] = deque(maxlen=KEPT)
        self._recent_ms: deque[float] = deque(maxlen=RECENT)
        self._recent_ends: deque[float] = deque(maxlen=RECENT)
        self._start = self._end = time.perf_counter()

    @property
    def name(self) -> str:
        """The stream's name."""
        return self._reader.source.name

    def add(self, report: FrameReport) -> None:
        """Count one frame."""
        self._end = time.perf_counter()
        self.frames += 1
        self.failures += report.error is not None
        self._recent_ends.append(self._end)
        if report.milliseconds is not None and report.error is None:
            self._latencies_ms.append(report.milliseconds)
            self._recent_ms.append(report.milliseconds)

    def recent(self) -> str:
        """The latest frames in words, for a progress bar."""
        parts = []
        if len(self._recent_ends) > 1:
            spent = self._recent_ends[-1] - self._recent_ends[0]
            parts.append(f"{(len(self._recent_ends) - 1) / max(spent, 1e-9):.1f} fps")
        if self._recent_ms:
            p50, p95 = np.percentile(np.asarray(self._recent_ms), (50, 95))
            parts.append(f"p50 {p50:.0f} ms, p95 {p95:.0f} ms")
        if self._reader.source.live:
            parts.append(f"{self._reader.frames.dropped} dropped")
        if self.failures:
            parts.append(f"{self.failures} failed")
        return ", ".join(parts)

    def row(self) -> tuple[str, ...]:
        """Name, frames, fps, p50 ms, p99 ms, dropped, failed and reconnects, for the summary."""
        spent = self._end - self._start
        fps = f"{self.frames / spent:.1f}" if self.frames and spent > 0 else "-"
        p50 = p99 = "-"
        if self._latencies_ms:
            quantiles = np.percentile(np.asarray(self._latencies_ms), (50, 99))
            p50, p99 = (f"{value:.1f}" for value in quantiles)
        reader = self._reader
        counts = (reader.frames.dropped, self.failures, reader.reconnects)
        return (self.name, str(self.frames), fps, p50, p99, *map(str, counts))


def figures_table(streams: Iterable[StreamFigures]) -> Table:
    """The summary at the end: a line per stream."""
    table = Table()
    table.add_column("video", overflow="fold")
    for heading in ("frames", "fps", "p50 ms", "p99 ms", "dropped", "failed", "reconnects"):
        table.add_column(heading, justify="right", no_wrap=True)
    for stream in streams:
        table.add_row(*stream.row())
    return table
