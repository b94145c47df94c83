"""The command ``detect``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence

from tqdm import tqdm

from detection_client._arguments import DEFAULT_SERVER, SERVER_VARIABLE, make_parser
from detection_client._async_client import AsyncDetectionClient
from detection_client._errors import (
    DeadlineExceededError,
    DetectionClientError,
    InvalidInputError,
    ModelNotFoundError,
    ServerUnavailableError,
)
from detection_client._files import Source, expand_arguments, output_paths
from detection_client._job import FATAL_ERRORS, Job, detect_all
from detection_client._report import JsonLines, Output, TableAtEnd
from detection_client._video_source import VideoSource, find_videos

__all__ = ["main"]

CONTACT_TIMEOUT_S = 10.0
OK, SOME_FAILED, UNUSABLE, INTERRUPTED, CLOSED_PIPE = 0, 1, 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: What follows the command's name; None for the process's own.

    Returns:
        The exit status.
    """
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Nobody reads any more. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE


def _main(arguments: Sequence[str] | None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    videos, photos = find_videos(options.images)
    videos += [VideoSource.camera(number) for number in options.camera]
    if videos and photos:
        parser.error(f"{photos[0]} is no video: photos and videos need a command each")
    if videos:
        return _detect_videos(parser, options, videos)
    if not photos:
        parser.error("name a photo, a video or a --camera")
    if options.track or options.show:
        parser.error("--track and --show are for videos")
    sources = expand_arguments(photos)
    save_to = None
    try:
        if options.save is not None:
            save_to = output_paths(sources, options.save)
            options.save.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(f"--save {options.save}: {error}")
    client = _make_client(parser, options)
    job = Job(
        score_threshold=options.score_threshold,
        iou_threshold=options.iou_threshold,
        max_detections=options.max_detections,
        concurrency=options.concurrency,
        save_to=save_to,
    )
    output: Output = JsonLines() if options.json or not sys.stdout.isatty() else TableAtEnd()
    try:
        asyncio.run(_work(client, sources, job, output, min(options.timeout, CONTACT_TIMEOUT_S)))
    except FATAL_ERRORS as error:
        reason = _advice(error)
    except DeadlineExceededError as error:  # of the first contact, not of an image
        reason = f"{error}; is it a DetServe server?"
    else:
        output.end()
        return SOME_FAILED if output.failures else OK
    output.end()
    print(f"detect: {reason}", file=sys.stderr)
    return UNUSABLE


def _make_client(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> AsyncDetectionClient:
    if options.local:
        if options.server is not None:
            parser.error("--local needs no --server")
        from detection_client._local import LocalClient

        try:
            return LocalClient(options.repository, model=options.model, timeout=options.timeout)
        except ModelNotFoundError as error:
            parser.exit(UNUSABLE, f"detect: {error}\n")
    if options.repository is not None:
        parser.error("--repository is for --local")
    server = options.server or os.environ.get(SERVER_VARIABLE) or DEFAULT_SERVER
    try:
        return AsyncDetectionClient(server, model=options.model, timeout=options.timeout)
    except InvalidInputError as error:
        parser.error(f"--server: {error}")


def _detect_videos(
    parser: argparse.ArgumentParser, options: argparse.Namespace, videos: list[VideoSource]
) -> int:
    # Imported when needed: photos do without OpenCV.
    from detection_client._tracking import TrackingUnavailableError, make_tracker
    from detection_client._video import VideoJob
    from detection_client._video_command import VideoOutputs, run_videos
    from detection_client._video_output import video_paths
    from detection_client._window import NoDisplayError, Window

    save_to = window = None
    try:
        if options.save is not None:
            save_to = video_paths(videos, options.save)
            options.save.mkdir(parents=True, exist_ok=True)
        if options.track:
            make_tracker()  # to learn at once whether it can be had
        if options.show:
            window = Window(len(videos))
    except (OSError, ValueError) as error:
        parser.error(f"--save {options.save}: {error}")
    except TrackingUnavailableError as error:
        parser.error(f"--track: {error}")
    except NoDisplayError as error:
        parser.error(f"--show: {error}")
    job = VideoJob(
        score_threshold=options.score_threshold,
        iou_threshold=options.iou_threshold,
        max_detections=options.max_detections,
        concurrency=options.concurrency,
        jpeg_quality=options.jpeg_quality,
        keep_pixels=save_to is not None or window is not None,
    )
    outputs = VideoOutputs(
        json_lines=options.json or not sys.stdout.isatty(),
        save_to=save_to,
        track=options.track,
        window=window,
        reconnect_for=options.reconnect_for,
    )
    client = _make_client(parser, options)

    async def work() -> int:
        async with client:
            await client.model_info(timeout=min(options.timeout, CONTACT_TIMEOUT_S))
            return await run_videos(client, videos, job, outputs)

    try:
        return SOME_FAILED if asyncio.run(work()) else OK
    except DetectionClientError as error:  # of the server, or of a file to save
        print(f"detect: {_advice(error)}", file=sys.stderr)
        return UNUSABLE


async def _work(
    client: AsyncDetectionClient,
    sources: Sequence[Source],
    job: Job,
    output: Output,
    contact_timeout: float,
) -> None:
    async with client:
        if any(source.problem is None for source in sources):
            # The first contact, apart from the images: it tells at once whether there is a
            # server, and the first image's time does not hold the connection's.
            await client.model_info(timeout=contact_timeout)
        hidden = len(sources) < 2 or not sys.stderr.isatty()
        with tqdm(total=len(sources), unit=" photos", disable=hidden, leave=False) as progress:
            async with contextlib.aclosing(detect_all(client, sources, job)) as reports:
                async for report in reports:
                    with progress.external_write_mode(file=sys.stdout):
                        output.add(report)
                    progress.update()


def _advice(error: DetectionClientError) -> str:
    if isinstance(error, ServerUnavailableError):
        return (
            f"{error}; start a server with `make serve`,"
            f" or name another with --server or {SERVER_VARIABLE}"
        )
    if isinstance(error, ModelNotFoundError):
        return f"{error}; name another model with --model"
    return str(error)
