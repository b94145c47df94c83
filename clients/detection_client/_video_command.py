"""The command ``detect`` on videos: all of them at once, through one client."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm import tqdm

from detection_client._async_client import AsyncDetectionClient
from detection_client._reader import VideoReader
from detection_client._tracking import Tracker, make_tracker
from detection_client._turns import Turns
from detection_client._video import FrameReport, VideoJob, detect_frames
from detection_client._video_drawing import draw_on_frame
from detection_client._video_output import StreamFigures, VideoFile, figures_table
from detection_client._video_source import VideoError, VideoSource
from detection_client._window import Window
from detserve.detections import Detections

__all__ = ["VideoOutputs", "run_videos"]

JOIN_TIMEOUT_S = 1.0
UPDATE_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class VideoOutputs:
    """What becomes of the results.

    Attributes:
        json_lines: Write a line of JSON per frame to standard output.
        save_to: Where each video's annotated copy goes; None for none.
        track: Number the objects across frames.
        window: Where to show the frames; None for nowhere.
        reconnect_for: Seconds for which a live source that is lost is tried again.
    """

    json_lines: bool
    save_to: Sequence[Path] | None = None
    track: bool = False
    window: Window | None = None
    reconnect_for: float = 60.0


async def run_videos(
    client: AsyncDetectionClient,
    sources: Sequence[VideoSource],
    job: VideoJob,
    outputs: VideoOutputs,
) -> int:
    """Detect on all the videos at once; figures of each go to standard error at the end.

    However it ends, the files written are complete.

    Returns:
        How many frames and streams failed.

    Raises:
        DetectionClientError: What ends all of the videos.
    """
    turns = Turns(job.concurrency)
    streams = [
        _Stream(
            place,
            VideoReader(source, reconnect_for=outputs.reconnect_for, encode=job.encode),
            outputs,
        )
        for place, source in enumerate(sources)
    ]
    tasks = [asyncio.create_task(stream.run(client, turns, job)) for stream in streams]
    watcher = asyncio.create_task(_watch(streams, outputs.window))
    try:
        left = set(tasks)
        while left and not watcher.done():
            done, _ = await asyncio.wait({watcher, *left}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            left -= done
    finally:
        for task in (watcher, *tasks):
            task.cancel()
        for stream in streams:
            stream.reader.stop()
        await asyncio.gather(watcher, *tasks, return_exceptions=True)
        for stream in streams:
            stream.close()
        Console(stderr=True).print(figures_table(stream.figures for stream in streams))
    return sum(stream.figures.failures + (stream.reader.error is not None) for stream in streams)


async def _watch(streams: Sequence[_Stream], window: Window | None) -> None:
    """Keep the progress and the window alive; ends when the window is closed."""
    while window is None or not window.closed:
        for stream in streams:
            stream.show_progress()
        if window is not None:
            window.update()
        await asyncio.sleep(UPDATE_EVERY_S if window is None else 0.03)


class _Stream:
    """One video on its way through the server, and where its results go."""

    def __init__(self, place: int, reader: VideoReader, outputs: VideoOutputs) -> None:
        self.reader = reader
        self.figures = StreamFigures(reader)
        self._place = place
        self._outputs = outputs
        self._tracker: Tracker | None = make_tracker() if outputs.track else None
        self._file = VideoFile(outputs.save_to[place]) if outputs.save_to else None
        self._last_index = -1
        self._told = ""
        self._bar = tqdm(
            desc=reader.source.name,
            unit=" frames",
            position=place,
            disable=not sys.stderr.isatty(),
            leave=False,
            bar_format="{desc}: {n_fmt} frames {postfix}",
        )

    async def run(self, client: AsyncDetectionClient, turns: Turns, job: VideoJob) -> None:
        """Take the video to its end."""
        self.reader.start()
        async for report in detect_frames(client, self.reader, turns, job):
            self.figures.add(report)
            track_ids = None
            if report.pixels is not None or self._tracker is not None:
                track_ids = await asyncio.to_thread(self._finish, report)
            if self._outputs.window is not None and report.pixels is not None:
                self._outputs.window.show(self._place, report.pixels)
            if self._outputs.json_lines:
                self._print(report.to_dict(track_ids))
            elif report.error is not None:
                self._tell(f"frame {report.index}: {report.error}")
        if self.reader.error is not None:
            if self._outputs.json_lines:
                self._print(_stream_error(self.reader.source.name, self.reader.error))
            self._tell(str(self.reader.error))

    def show_progress(self) -> None:
        """Bring the progress bar up to date, and tell of a lost connection once."""
        if self.reader.state != self._told:
            self._told = self.reader.state
            self._tell(self._told or f"{self.reader.source.name} is back")
        self._bar.n = self.figures.frames
        self._bar.set_postfix_str(self.figures.recent())

    def close(self) -> None:
        """Complete the file, and let the thread end."""
        self._bar.close()
        self.reader.join(JOIN_TIMEOUT_S)
        if self._file is not None:
            self._file.close()

    def _finish(self, report: FrameReport) -> list[int | None] | None:
        """Track, draw and save one frame, in a thread; the objects' numbers."""
        found = report.detections if report.detections is not None else Detections.empty()
        track_ids = None
        if self._tracker is not None:
            gap = report.index - self._last_index
            self._last_index = report.index
            track_ids = self._tracker.update(found, frames_since=gap)
        if report.pixels is not None:
            draw_on_frame(report.pixels, found, track_ids)
            if self._file is not None:
                self._file.write(report.pixels, self.reader.fps)
        return track_ids

    def _print(self, line: dict[str, Any]) -> None:
        with self._bar.external_write_mode(file=sys.stdout):
            print(json.dumps(line), flush=True)

    def _tell(self, message: str) -> None:
        with self._bar.external_write_mode(file=sys.stderr):
            print(f"detect: {message}", file=sys.stderr)


def _stream_error(name: str, error: VideoError) -> dict[str, Any]:
    return {"source": name, "error": {"type": type(error).__name__, "message": str(error)}}
