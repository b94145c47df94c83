"""Decoding: what a file and a live source do with frames that nobody takes, and back-off."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from detection_client._frames import Frame, FrameBuffer
from detection_client._reader import LONGEST_PAUSE_S, VideoReader, back_off_s
from detection_client._video_source import VideoError, VideoSource, find_videos


def frame(index: int) -> Frame:
    return Frame(index, index / 10, np.zeros((4, 4, 3), np.uint8))


def make_clip(path: Path, frames: int = 30) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (64, 48))
    for index in range(frames):
        writer.write(np.full((48, 64, 3), index * 8 % 256, np.uint8))
    writer.release()
    return path


def test_a_live_buffer_drops_the_oldest_and_counts() -> None:
    async def work() -> tuple[list[int], int]:
        buffer = FrameBuffer(3, drop_oldest=True)
        assert [buffer.put(frame(index)) for index in range(10)] == [True] * 10
        buffer.end()
        kept = []
        while await buffer.wait():
            kept.append(buffer.pop().index)
        return kept, buffer.dropped

    assert asyncio.run(work()) == ([7, 8, 9], 7)


def test_a_file_buffer_makes_the_thread_wait_and_ends_it() -> None:
    async def work() -> None:
        buffer = FrameBuffer(2, drop_oldest=False)
        answers: list[bool] = []
        thread = threading.Thread(
            target=lambda: answers.extend(buffer.put(frame(index)) for index in range(3))
        )
        thread.start()
        assert await buffer.wait()
        buffer.end()
        await asyncio.to_thread(thread.join, 5)
        assert not thread.is_alive()
        assert answers[:2] == [True, True] or answers == [True, False, False]
        assert buffer.dropped == 0

    asyncio.run(work())


def test_a_file_gives_every_frame_in_order(tmp_path: Path) -> None:
    async def work() -> list[tuple[int, float]]:
        source = VideoSource("clip", str(make_clip(tmp_path / "clip.mp4")), False)
        reader = VideoReader(source, reconnect_for=1)
        reader.start()
        seen = []
        while await reader.frames.wait():
            one = reader.frames.pop()
            seen.append((one.index, round(one.time_s, 3)))
            await asyncio.sleep(0.001)  # slower than decoding
        reader.join(5)
        assert (reader.error, reader.fps, reader.frames.dropped) == (None, 10.0, 0)
        return seen

    assert asyncio.run(work()) == [(index, index / 10) for index in range(30)]


@pytest.mark.parametrize("live", [False, True])
def test_what_cannot_be_opened_ends_with_an_error(tmp_path: Path, live: bool) -> None:
    async def work() -> VideoError | None:
        source = VideoSource("gone", str(tmp_path / "gone.mp4"), live)
        reader = VideoReader(source, reconnect_for=0.2)
        reader.start()
        assert not await reader.frames.wait()
        reader.join(5)
        return reader.error

    error = asyncio.run(work())
    assert error is not None
    assert "there is no such file" in str(error)
    assert ("tried again" in str(error)) == live


def test_back_off_doubles_with_jitter_up_to_a_limit() -> None:
    for attempt, longest in enumerate((0.25, 0.5, 1.0, 2.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S)):
        pauses = [back_off_s(attempt) for _ in range(50)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest
    assert back_off_s(10_000) <= LONGEST_PAUSE_S


def test_videos_are_told_from_photos() -> None:
    videos, others = find_videos(
        [
            "a.jpg",
            "b.MP4",
            "rtsp://me:secret@host/x",
            "http://host/c.mp4?t=1",
            "http://host/cam",
            "-",
        ]
    )
    assert others == ["a.jpg", "-"]
    assert [(video.name, video.live) for video in videos] == [
        ("b.MP4", False),
        ("rtsp://me:***@host/x", True),
        ("http://host/c.mp4?t=1", False),
        ("http://host/cam", True),
    ]
    assert videos[1].stem == "host-x"
