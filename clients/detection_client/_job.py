"""Many images detected with several requests under way, their results in order."""

from __future__ import annotations

import asyncio
import io
import os
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from detection_client._async_client import AsyncDetectionClient
from detection_client._drawing import draw
from detection_client._errors import (
    AccessDeniedError,
    DetectionClientError,
    InvalidInputError,
    ModelNotFoundError,
    ServerUnavailableError,
)
from detection_client._files import STDIN, Source
from detection_client._images import PILLOW_ERRORS, read_image
from detection_client._report import ImageReport
from detserve.detections import Detections

__all__ = ["FATAL_ERRORS", "Job", "SaveError", "detect_all"]

EXIF_ORIENTATION = 0x0112
# What every further image would meet as well.
FATAL_ERRORS = (ServerUnavailableError, ModelNotFoundError, AccessDeniedError)


@dataclass(frozen=True, slots=True)
class Job:
    """What to do with every image.

    Attributes:
        score_threshold: For every request; None for the server's default, as the next two.
        iou_threshold: See above.
        max_detections: See above.
        concurrency: Most requests under way at once.
        save_to: Where each source's annotated picture goes; None for no pictures.
    """

    score_threshold: float | None = None
    iou_threshold: float | None = None
    max_detections: int | None = None
    concurrency: int = 4
    save_to: Sequence[Path] | None = None


class SaveError(DetectionClientError):
    """The annotated picture could not be written."""


async def detect_all(
    client: AsyncDetectionClient, sources: Sequence[Source], job: Job
) -> AsyncGenerator[ImageReport, None]:
    """Detect on every image, with several requests under way.

    Args:
        client: Whom to ask.
        sources: The images; those with a problem are reported in their place.
        job: What to do with each.

    Yields:
        One report per source, in their order.

    Raises:
        DetectionClientError: One of `FATAL_ERRORS`; the images before have been reported.
    """
    free = asyncio.Semaphore(job.concurrency)
    pending: deque[asyncio.Task[ImageReport]] = deque()

    async def work(index: int, source: Source) -> ImageReport:
        async with free:
            return await _detect_one(
                client, source, job, job.save_to[index] if job.save_to else None
            )

    try:
        for index, source in enumerate(sources):
            pending.append(asyncio.create_task(work(index, source)))
            if len(pending) > 2 * job.concurrency:  # some beyond, as the first may be the slowest
                yield await pending[0]
                pending.popleft()
        while pending:
            yield await pending[0]
            pending.popleft()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _detect_one(
    client: AsyncDetectionClient, source: Source, job: Job, target: Path | None
) -> ImageReport:
    if source.problem is not None:
        return ImageReport(source.name, error=InvalidInputError(source.problem))
    took = None
    try:
        data = await asyncio.to_thread(_read, source.name)
        start = time.perf_counter()
        try:
            found = await client.detect(
                data,
                score_threshold=job.score_threshold,
                iou_threshold=job.iou_threshold,
                max_detections=job.max_detections,
            )
        finally:
            took = (time.perf_counter() - start) * 1e3
        if target is not None:
            await asyncio.to_thread(_save, data, found, target)
    except FATAL_ERRORS:
        raise
    except DetectionClientError as error:
        return ImageReport(source.name, milliseconds=took, error=error)
    return ImageReport(source.name, found, took, _size_wh(data))


def _read(name: str) -> bytes:
    return read_image(sys.stdin.buffer.read() if name == STDIN else name)


def _size_wh(data: bytes) -> tuple[int, int] | None:
    """Width and height as the boxes count them; only the header is read."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            turned = image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
            # Pillow turns a TIFF itself.
            return image.size[::-1] if turned and image.format != "TIFF" else image.size
    except PILLOW_ERRORS:  # the size is an extra
        return None


def _save(data: bytes, found: Detections, target: Path) -> None:
    """Write the annotated picture, whole or not at all."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with Image.open(io.BytesIO(data)) as image:
            picture = draw(image, found)
        try:
            if target.suffix.lower() == ".png":
                picture.save(partial, "PNG")
            else:
                picture.save(partial, "JPEG", quality=92)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    except PILLOW_ERRORS as error:
        raise SaveError(f"cannot save {target}: {error}") from error
