"""Detection in this process, without a server: for edge devices and offline work.

The one module of the client that uses the pipeline itself. It is imported only for this mode.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

from detection_client._base import DEFAULT_MODEL
from detection_client._errors import DeadlineExceededError, InvalidInputError, ModelNotFoundError
from detection_client._images import ImageInput, read_image
from detection_client._model_info import ModelInfo
from detection_client._tensors import Options
from detserve.detections import Detections
from detserve.engines import EngineError
from detserve.imaging import ImageError
from detserve.pipeline import Pipeline
from detserve.repository import RepositoryError

__all__ = ["LocalClient", "find_repository"]

T = TypeVar("T")


class _Pipeline(Protocol):
    labels: tuple[str, ...]

    def detect(
        self,
        image: bytes,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> Detections: ...


def find_repository() -> Path:
    """The model repository of the current folder, else of the clone that this package lies in."""
    beside = Path(__file__).resolve().parents[2] / "model_repository"
    here = Path("model_repository")
    return here if here.is_dir() or not beside.is_dir() else beside


class LocalClient:
    """`AsyncDetectionClient` without a server: images are detected on in threads of this process.

    Args:
        repository: The model repository that a server would serve.
        model: Name of the ensemble in it.
        timeout: Seconds that a call waits, unless the call says otherwise.
        workers: Images in work at once, each on one core; None for as many as there are cores.

    Example:
        >>> async with LocalClient("model_repository") as client:  # doctest: +SKIP
        ...     found = await client.detect("photo.jpg")
    """

    def __init__(
        self,
        repository: str | os.PathLike[str],
        *,
        model: str = DEFAULT_MODEL,
        timeout: float = 30.0,
        workers: int | None = None,
    ) -> None:
        self.repository = Path(repository)
        self.model = model
        self._timeout = timeout
        count = workers or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="detect")
        self._loading = asyncio.Lock()
        self._pipeline: _Pipeline | None = None

    async def detect(
        self,
        image: ImageInput,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
        timeout: float | None = None,
    ) -> Detections:
        """Detect the objects in one image; see `DetectionClient.detect`.

        Raises:
            InvalidInputError: The image or an option is not usable.
            ModelNotFoundError: The repository has no such model, or it cannot be loaded.
            DeadlineExceededError: It took longer than the timeout.
        """
        Options(score_threshold, iou_threshold, max_detections)  # checks them
        pipeline = await self._open()

        def work() -> Detections:
            try:
                return pipeline.detect(
                    read_image(image),
                    score_threshold=score_threshold,
                    iou_threshold=iou_threshold,
                    max_detections=max_detections,
                )
            except (ImageError, ValueError) as error:
                if isinstance(error, InvalidInputError):
                    raise
                raise InvalidInputError(str(error)) from error

        return await self._in_time(work, timeout)

    async def model_info(self, *, timeout: float | None = None) -> ModelInfo:
        """The model's labels.

        Raises:
            ModelNotFoundError: The repository has no such model, or it cannot be loaded.
        """
        del timeout  # of a contact that there is none of
        return ModelInfo(self.model, (await self._open()).labels, 1)

    async def close(self) -> None:
        """Wait for what is in work, and end the threads."""
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def _open(self) -> _Pipeline:
        async with self._loading:
            if self._pipeline is None:
                loop = asyncio.get_running_loop()
                self._pipeline = await loop.run_in_executor(self._pool, self._load)
        return self._pipeline

    def _load(self) -> Pipeline:
        try:
            return Pipeline.from_repository(self.repository, ensemble=self.model)
        except (RepositoryError, EngineError) as error:
            raise ModelNotFoundError(
                f"{self.repository} has no {self.model!r} that can be used here: {error};"
                " build it with `make model`"
            ) from error

    async def _in_time(self, work: Callable[[], T], timeout: float | None) -> T:
        seconds = self._timeout if timeout is None else timeout
        loop = asyncio.get_running_loop()
        try:
            return await asyncio.wait_for(loop.run_in_executor(self._pool, work), seconds)
        except TimeoutError:
            raise DeadlineExceededError(f"not done within {seconds:g} s") from None
