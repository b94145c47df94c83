"""One video's frames through the server: several requests under way, results in frame order."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import simplejpeg

from detection_client._async_client import AsyncDetectionClient
from detection_client._errors import (
    AccessDeniedError,
    DetectionClientError,
    ModelNotFoundError,
    ServerUnavailableError,
)
from detection_client._frames import Frame
from detection_client._reader import VideoReader, back_off_s
from detection_client._turns import Turns
from detserve.detections import Detections

__all__ = ["FrameReport", "VideoJob", "detect_frames", "encode_frame"]


@dataclass(frozen=True, slots=True)
class VideoJob:
    """What to do with every frame.

    Attributes:
        score_threshold: For every request; None for the server's default, as the next two.
        iou_threshold: See above.
        max_detections: See above.
        concurrency: Most requests under way at once, of all the videos together.
        jpeg_quality: In which the frames are sent, 1 to 100.
        keep_pixels: Whether the reports hold the frames' pixels.
    """

    score_threshold: float | None = None
    iou_threshold: float | None = None
    max_detections: int | None = None
    concurrency: int = 4
    jpeg_quality: int = 90
    keep_pixels: bool = False

    def encode(self, pixels: npt.NDArray[Any]) -> bytes:
        """A frame as it is sent; see `encode_frame`."""
        return encode_frame(pixels, self.jpeg_quality)


@dataclass(frozen=True, eq=False, slots=True)
class FrameReport:
    """What became of one frame.

    Attributes:
        source: The video's name.
        index: The frame's number in the stream from 0; those that were dropped are counted.
        time_s: Seconds from the stream's start.
        size_wh: Width and height in pixels.
        detections: What was found; None where it failed.
        milliseconds: How long the answer took, from the request's start to its end.
        error: Why there are no detections.
        pixels: uint8 [H, W, 3] BGR, where the job keeps them.
    """

    source: str
    index: int
    time_s: float
    size_wh: tuple[int, int]
    detections: Detections | None = None
    milliseconds: float | None = None
    error: DetectionClientError | None = None
    pixels: npt.NDArray[Any] | None = None

    def to_dict(self, track_ids: Sequence[int | None] | None = None) -> dict[str, Any]:
        """A JSON-ready dictionary.

        Args:
            track_ids: For each detection the number of its object, where objects are tracked.
        """
        result: dict[str, Any] = {
            "source": self.source,
            "frame": self.index,
            "time_s": round(self.time_s, 3),
        }
        if self.error is not None or self.detections is None:
            kind = type(self.error).__name__ if self.error else "Error"
            return {**result, "error": {"type": kind, "message": str(self.error)}}
        result["width"], result["height"] = self.size_wh
        if self.milliseconds is not None:
            result["ms"] = round(self.milliseconds, 2)
        found = self.detections.to_dicts()
        if track_ids is not None:
            for entry, number in zip(found, track_ids, strict=True):
                entry["track_id"] = number
        result["detections"] = found
        return result


def encode_frame(pixels: npt.NDArray[Any], quality: int) -> bytes:
    """A frame as it is sent: a JPEG.

    Args:
        pixels: uint8 [H, W, 3], BGR.
        quality: 1 to 100.
    """
    data: bytes = simplejpeg.encode_jpeg(
        pixels, quality=quality, colorspace="BGR", colorsubsampling="420", fastdct=True
    )
    return data


async def detect_frames(
    client: AsyncDetectionClient, reader: VideoReader, turns: Turns, job: VideoJob
) -> AsyncGenerator[FrameReport, None]:
    """Detect on every frame that the reader gives, with several requests under way.

    Args:
        client: Whom to ask.
        reader: The video; it has been started.
        turns: The requests that all the videos may have under way.
        job: What to do with each frame.

    Yields:
        One report per frame, in their order.

    Raises:
        DetectionClientError: What every further frame would meet as well. For a live source an
            unreachable server is not among them: frames are lost until it answers again.
    """
    fatal: tuple[type[DetectionClientError], ...] = (ModelNotFoundError, AccessDeniedError)
    if not reader.source.live:
        fatal = (*fatal, ServerUnavailableError)
    pending: deque[asyncio.Task[FrameReport]] = deque()
    longest = 2 * job.concurrency  # some beyond those under way, as the first may be the slowest
    failures = 0
    feed = _Feed(client, reader, turns, job, fatal)
    next_task: asyncio.Task[asyncio.Task[FrameReport] | None] | None = None
    more = True
    try:
        while more or pending:
            if more and next_task is None and len(pending) < longest:
                next_task = asyncio.create_task(feed.send_next())
            waited = {task for task in (next_task, pending[0] if pending else None) if task}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if next_task is not None and next_task.done():
                sent, next_task = next_task.result(), None
                if sent is None:
                    more = False
                else:
                    pending.append(sent)
            if pending and pending[0].done():
                report = pending.popleft().result()
                failures = failures + 1 if isinstance(report.error, ServerUnavailableError) else 0
                feed.pause_s = back_off_s(failures - 1) if failures else 0.0
                yield report
    finally:
        left = [task for task in (next_task, *pending) if task is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class _Feed:
    """Sends a reader's frames as its turns come."""

    def __init__(
        self,
        client: AsyncDetectionClient,
        reader: VideoReader,
        turns: Turns,
        job: VideoJob,
        fatal: tuple[type[DetectionClientError], ...],
    ) -> None:
        self.pause_s = 0.0
        self._client = client
        self._reader = reader
        self._turns = turns
        self._job = job
        self._fatal = fatal

    async def send_next(self) -> asyncio.Task[FrameReport] | None:
        """The task of the next frame's request; None where there is no further frame."""
        if self.pause_s:
            await asyncio.sleep(self.pause_s)
        if not await self._reader.frames.wait():
            return None
        await self._turns.take(self._reader)
        # Taken only now, so that a live source's frame is a fresh one.
        return asyncio.create_task(self._ask(self._reader.frames.pop()))

    async def _ask(self, frame: Frame) -> FrameReport:
        job, took, found = self._job, None, None
        failure: DetectionClientError | None = None
        try:
            data = frame.jpeg
            if data is None:
                data = await asyncio.to_thread(job.encode, frame.pixels)
            start = time.perf_counter()
            try:
                found = await self._client.detect(
                    data,
                    score_threshold=job.score_threshold,
                    iou_threshold=job.iou_threshold,
                    max_detections=job.max_detections,
                )
            finally:
                took = (time.perf_counter() - start) * 1e3
        except DetectionClientError as error:
            if isinstance(error, self._fatal):
                raise
            failure = error
        finally:
            self._turns.give(self._reader)
        height, width = frame.pixels.shape[:2]
        return FrameReport(
            self._reader.source.name, frame.index, frame.time_s, (width, height),
            found, took, failure, frame.pixels if job.keep_pixels else None,
        )  # fmt: skip
