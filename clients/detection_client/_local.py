"""The pipeline in this process, behind the interface of the asyncio client: no server at all.

The clients import `detserve.detections` alone, and this module is the one exception: it runs the
rest of `detserve`. It is imported only when it is asked for.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from detection_client._address import ServerAddress
from detection_client._async_client import AsyncDetectionClient
from detection_client._base import DEFAULT_MODEL, DEFAULT_TIMEOUT_S
from detection_client._errors import (
    DetectionClientError,
    InvalidInputError,
    ModelNotFoundError,
    ServerError,
)
from detection_client._images import ArrayEncoding
from detection_client._status import no_answer
from detection_client._tensors import InferRequest
from detserve.detections import Detections
from detserve.engines import EngineError
from detserve.pipeline import Pipeline
from detserve.repository import DetectorRepository, RepositoryError

__all__ = ["LocalClient", "find_repository"]


class LocalClient(AsyncDetectionClient):
    """`AsyncDetectionClient` without a server: the same calls, answers and errors.

    Images run through the pipeline that Triton serves, on ``workers`` threads that share one
    detector with one thread inside each of its operators. Headers mean nothing here.

    Args:
        repository: The model repository; None for the one of `find_repository`.
        model: The ensemble.
        timeout: Seconds that a call may take.
        workers: Images in work at once; None for as many as there are cores.
        concurrency: Most images that one ``detect_batch`` has under way at once.
        array_encoding: How arrays are encoded on their way; see `encode_array`.

    Raises:
        InvalidInputError: An option is not one of those above.
        ModelNotFoundError: There is no such repository or model, or it cannot be run here.

    Example:
        >>> async with LocalClient("model_repository") as client:  # doctest: +SKIP
        ...     found = await client.detect("photo.jpg")
    """

    def __init__(
        self,
        repository: str | os.PathLike[str] | None = None,
        *,
        model: str = DEFAULT_MODEL,
        timeout: float = DEFAULT_TIMEOUT_S,
        workers: int | None = None,
        concurrency: int = 4,
        array_encoding: ArrayEncoding = "bmp",
    ) -> None:
        if workers is not None and workers < 1:
            raise InvalidInputError(f"workers must be at least 1, got {workers}")
        path = find_repository() if repository is None else Path(repository)
        super().__init__(
            f"local:{path}",
            model=model,
            timeout=timeout,
            concurrency=concurrency,
            array_encoding=array_encoding,
        )
        self._local = _LocalTransport(path, model, workers or len(os.sched_getaffinity(0)))

    @staticmethod
    def _parse_addresses(url: str | Sequence[str]) -> tuple[ServerAddress, ...]:
        assert isinstance(url, str)
        return (ServerAddress("local", "localhost", 0, url.removeprefix("local:")),)

    def _make_transport(self) -> _LocalTransport:
        return self._local

    async def close(self) -> None:
        """End the threads, once they have done what they are at."""
        await super().close()
        await self._local.close()


def find_repository() -> Path:
    """The model repository of the current folder, else of the clone that this package lies in.

    Raises:
        ModelNotFoundError: There is none.
    """
    here = Path("model_repository")
    beside = Path(__file__).resolve().parents[2] / "model_repository"
    for path in (here, beside):
        if path.is_dir():
            return path
    raise ModelNotFoundError(
        f"there is no model_repository in {Path.cwd()}: name one, or run `make model` in a clone"
    )


class _LocalTransport:
    """The pipeline in the place of a connection."""

    def __init__(self, path: Path, model: str, workers: int) -> None:
        try:
            repository = DetectorRepository(path, model)
            self._pipeline = Pipeline.from_repository(path, ensemble=model)
            labels = repository.served_labels()
        except (RepositoryError, EngineError) as error:
            raise ModelNotFoundError(
                f"{path} has no {model!r} that can be used here: {error};"
                " build it with `make model`"
            ) from error
        self._config = {
            "max_batch_size": 1,  # on a CPU more at once is no faster
            "parameters": {"labels": {"string_value": json.dumps(labels)}},
        }
        # More than the output has rows is refused by a server, and here too.
        self._rows = next(
            out.dims[0] for out in repository.postprocess.output if out.name == "detection_boxes"
        )
        self._url = f"local:{path}"
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="detect-local")

    async def infer(self, request: InferRequest, timeout: float) -> _Result:
        """Run the pipeline in one of the threads."""
        loop = asyncio.get_running_loop()
        try:
            future = loop.run_in_executor(self._pool, self._detect, request)
        except RuntimeError:  # the pool takes no more
            raise DetectionClientError("the client was closed") from None
        try:
            return await asyncio.wait_for(future, timeout)
        except TimeoutError:
            raise no_answer(self._url, timeout) from None

    async def model_config(
        self,
        model: str,  # noqa: ARG002 - there is one model, and it does not wait
        timeout: float,  # noqa: ARG002
        headers: Mapping[str, str],  # noqa: ARG002
    ) -> dict[str, Any]:
        """What a client reads of the ensemble's configuration."""
        return self._config

    async def model_ready(self, model: str, timeout: float) -> bool:  # noqa: ARG002
        """The model is loaded as long as the client is."""
        return True

    async def close(self) -> None:
        """End the threads; what has not begun is dropped."""
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

    def _detect(self, request: InferRequest) -> _Result:
        options = request.options
        most = options.max_detections
        if most is not None and most > self._rows:
            raise InvalidInputError(f"max_detections must be at most {self._rows}, got {most}")
        try:
            found = self._pipeline.detect_batch(
                request.images,
                score_threshold=_as_float32(options.score_threshold),
                iou_threshold=_as_float32(options.iou_threshold),
                max_detections=None if most is None else int(most),
            )
        except ValueError as error:  # an image or a threshold
            raise InvalidInputError(str(error)) from None
        except EngineError as error:
            raise ServerError(f"the detector failed: {error}") from None
        return _Result(found)


class _Result:
    """Detections in the form of Triton's answer."""

    def __init__(self, found: list[Detections]) -> None:
        rows = max(map(len, found))
        self._outputs: dict[str, npt.NDArray[Any]] = {
            "num_detections": np.array([[len(one)] for one in found], np.int32),
            "detection_boxes": np.zeros((len(found), rows, 4), np.float32),
            "detection_scores": np.zeros((len(found), rows), np.float32),
            "detection_classes": np.zeros((len(found), rows), np.int32),
        }
        for index, one in enumerate(found):
            self._outputs["detection_boxes"][index, : len(one)] = one.boxes_xyxy
            self._outputs["detection_scores"][index, : len(one)] = one.scores
            self._outputs["detection_classes"][index, : len(one)] = one.class_ids

    def as_numpy(self, name: str) -> npt.NDArray[Any] | None:
        """One output tensor."""
        return self._outputs.get(name)


def _as_float32(value: float | None) -> float | None:
    """A threshold as a server gets it: a score equal to it must fare the same."""
    return None if value is None else float(np.float32(value))
