"""Measure videos through the command's pipeline against plain requests for the same frames.

The plain load sends the frames' JPEGs, encoded before, over gRPC in a closed loop with as many
requests under way. Rounds of the two alternate, so that a machine whose speed drifts spoils no
ratio. Then several copies of the video run at once, and each one's share of the fair share is
told.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from detection_client import AsyncDetectionClient
from detection_client._reader import VideoReader
from detection_client._turns import Turns
from detection_client._video import VideoJob, detect_frames
from detection_client._video_source import VideoSource, open_video
from local_server import TritonServer
from machine import processor_name

MIN_RATIO, MIN_SHARE = 0.9, 0.8


def encoded_frames(video: Path, job: VideoJob) -> list[bytes]:
    """Every frame as the pipeline sends it."""
    capture = open_video(VideoSource(str(video), str(video), False))
    frames: list[bytes] = []
    while True:
        there, pixels = capture.read()
        if not there:
            capture.release()
            return frames
        frames.append(job.encode(pixels))


async def plain_fps(client: AsyncDetectionClient, frames: Sequence[bytes], job: VideoJob) -> float:
    """Frames a second of a closed loop over frames that are encoded already."""
    left = iter(frames)

    async def ask() -> None:
        for data in left:
            await client.detect(data)

    start = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(job.concurrency)))
    return len(frames) / (time.perf_counter() - start)


async def pipeline_fps(
    client: AsyncDetectionClient, video: Path, job: VideoJob, copies: int = 1
) -> list[float]:
    """Frames a second of each copy, counted while all of them run.

    Raises:
        RuntimeError: A frame failed or came out of order.
    """
    turns = Turns(job.concurrency)
    counts = [0] * copies
    ended = asyncio.Event()
    counts_then: list[int] = []
    start = end = time.perf_counter()

    async def run(place: int) -> None:
        nonlocal end
        source = VideoSource(f"{video} {place}", str(video), False)
        reader = VideoReader(source, reconnect_for=0, encode=job.encode)
        reader.start()
        async for report in detect_frames(client, reader, turns, job):
            if report.error is not None or report.index != counts[place]:
                raise RuntimeError(f"frame {report.index}: {report.error or 'out of order'}")
            counts[place] += 1
        if not ended.is_set():
            ended.set()
            end = time.perf_counter()
            counts_then.extend(counts)

    await asyncio.gather(*(run(place) for place in range(copies)))
    return [count / (end - start) for count in counts_then]


async def measure(url: str, video: Path, job: VideoJob, rounds: int, copies: int) -> bool:
    """Print both comparisons; whether they are good enough."""
    frames = encoded_frames(video, job)
    async with AsyncDetectionClient(url) as client:
        await plain_fps(client, frames[:100], job)  # warm-up
        ratios = []
        for number in range(1, rounds + 1):
            plain = await plain_fps(client, frames, job)
            (piped,) = await pipeline_fps(client, video, job)
            ratios.append(piped / plain)
            print(f"round {number}: plain {plain:.1f} fps, video {piped:.1f} fps", flush=True)
        ratio = statistics.median(ratios)
        print(f"video / plain, median of {rounds}: {ratio:.2f} (wanted: {MIN_RATIO})", flush=True)
        each = await pipeline_fps(client, video, job, copies)
    fair = sum(each) / copies
    shares = [fps / fair for fps in each]
    print(f"{copies} copies: {sum(each):.1f} fps together, of the fair share each has", end=" ")
    print(*(f"{share:.2f}" for share in shares), f"(wanted: {MIN_SHARE})")
    return ratio >= MIN_RATIO and min(shares) >= MIN_SHARE


def main() -> int:
    """Run the benchmark; 1 where a figure is below what is wanted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--server", metavar="URL", help="a running one (default: one of its own)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--concurrency", type=int, default=4)
    options = parser.parse_args()
    if not options.video.is_file():
        parser.error(f"there is no file {options.video}")
    print(processor_name())
    job = VideoJob(concurrency=options.concurrency)
    with contextlib.ExitStack() as stack:
        url = options.server or stack.enter_context(TritonServer()).grpc_url
        good = asyncio.run(measure(url, options.video, job, options.rounds, options.copies))
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
