"""A thread that decodes one video, and connects again when a live one is lost."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt

from detection_client._frames import Frame, FrameBuffer
from detection_client._video_source import VideoError, VideoSource, open_video

__all__ = ["VideoReader", "back_off_s"]

# The longest pause is part of the gap that a restarted server leaves.
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 2.0
# A file is decoded some frames ahead. Of a live source few are held: more would be delay.
FILE_BUFFER, LIVE_BUFFER = 8, 3
DEFAULT_FPS = 25.0


def back_off_s(attempt: int) -> float:
    """Seconds to wait after the attempt of this number, from 0: doubling, with jitter."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt, 16)) * random.uniform(0.5, 1.0)


class VideoReader:
    """Decodes a video in a thread of its own; to be made in the event loop that takes the frames.

    Args:
        source: What to read.
        reconnect_for: Seconds for which a live source that is lost is tried again.
        encode: Makes the JPEG of a file's frame, ahead of its turn. Of a live source many frames
            may be dropped: those are left to be encoded when they are sent.

    Attributes:
        frames: Where the frames come.
        fps: Frames a second as the video says; known with the first frame.
        reconnects: How often a lost source came back.
        state: What keeps the frames from coming, for people; empty where nothing does.
        error: Why the stream ended, where it was not its end; known after the last frame.
    """

    def __init__(
        self,
        source: VideoSource,
        *,
        reconnect_for: float,
        encode: Callable[[npt.NDArray[Any]], bytes] | None = None,
    ) -> None:
        size = LIVE_BUFFER if source.live else FILE_BUFFER
        self.source = source
        self.frames = FrameBuffer(size, drop_oldest=source.live)
        self.fps = DEFAULT_FPS
        self.reconnects = 0
        self.state = ""
        self.error: VideoError | None = None
        self._reconnect_for = reconnect_for
        self._encode = None if source.live else encode
        self._stopped = threading.Event()
        self._count = 0
        self._started = 0.0
        self._thread = threading.Thread(target=self._run, name=source.name, daemon=True)

    def start(self) -> None:
        """Begin to decode."""
        self._started = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Decode no more; the frames held can still be taken. It does not wait for the thread."""
        self._stopped.set()
        self.frames.end()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end, which a silent server can delay."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            if self.source.live:
                self._read_live()
            else:
                with _opened(self.source) as capture:
                    self._read(capture)
                if not self._count and not self._stopped.is_set():
                    self.error = VideoError(f"{self.source.name} holds no frame")
        except VideoError as error:
            self.error = error
        finally:
            self.frames.end()

    def _read_live(self) -> None:
        lost_at, attempt = time.monotonic(), 0
        while not self._stopped.is_set():
            reason = f"{self.source.name} was lost"
            try:
                with _opened(self.source) as capture:
                    if self._read(capture):
                        lost_at, attempt = time.monotonic(), 0
            except VideoError as error:
                reason = str(error)
            if time.monotonic() - lost_at >= self._reconnect_for:
                raise VideoError(f"{reason}; tried again for {self._reconnect_for:g} s")
            self.state = f"{reason}, connecting again"
            self._stopped.wait(back_off_s(attempt))
            attempt += 1

    def _read(self, capture: Any) -> int:
        """Read to the end, or to the loss of the connection; how many frames came."""
        import cv2

        fps = capture.get(cv2.CAP_PROP_FPS)
        if 0 < fps <= 1000:
            self.fps = fps
        before = self._count
        while not self._stopped.is_set():
            there, pixels = capture.read()
            if not there:
                break
            if self.state:
                self.reconnects += before > 0
                self.state = ""
            if self.source.live:
                time_s = time.monotonic() - self._started
            else:
                time_s = self._count / self.fps
            jpeg = self._encode(pixels) if self._encode is not None else None
            if not self.frames.put(Frame(self._count, time_s, pixels, jpeg)):
                break
            self._count += 1
        return self._count - before


@contextlib.contextmanager
def _opened(source: VideoSource) -> Iterator[Any]:
    capture = open_video(source)
    try:
        yield capture
    finally:
        capture.release()
