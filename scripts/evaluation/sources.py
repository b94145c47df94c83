"""What can be evaluated: a detector's file, a model repository, a running server."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from detection_client import DetectionClient
from detserve.detections import Detections
from detserve.engines import load_engine
from detserve.nms import SelectionSettings
from detserve.pipeline import Pipeline
from evaluation.accuracy import evaluate
from evaluation.dataset import Dataset
from evaluation.metrics import MAX_DETECTIONS
from evaluation.result import Evaluation, EvaluationError

if TYPE_CHECKING:
    from contract import DetectorInfo

__all__ = [
    "EvaluationSettings",
    "Source",
    "evaluate_file",
    "evaluate_repository",
    "evaluate_server",
    "evaluate_source",
    "open_source",
]

_REQUESTS = 4  # in flight at a server, unless told otherwise


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is asked of a detector, the same wherever it runs.

    Attributes:
        score_threshold: Lowest score reported. Precision is averaged over all recalls and the
            high ones are reached by low scores only; under 0.001 nothing changes any more.
        iou_threshold: Overlap above which a box is suppressed; None for what the detector's file,
            and the repository made of it, say.
        max_detections: Most detections of an image; COCO counts 100.
    """

    score_threshold: float = 0.001
    iou_threshold: float | None = None
    max_detections: int = MAX_DETECTIONS


@dataclass(frozen=True)
class Source:
    """A detector that is ready to be asked.

    Attributes:
        name: What it is, for the user.
        labels: The names of its classes by index; may be empty.
        detect: Encoded image to detections, at the settings of the evaluation; threads may share
            it.
    """

    name: str
    labels: tuple[str, ...]
    detect: Callable[[bytes], Detections]


@contextlib.contextmanager
def open_source(
    source: str | Path,
    settings: EvaluationSettings | None = None,
    *,
    ensemble: str = "detection",
    engine: str = "onnxruntime",
) -> Iterator[Source]:
    """Get a detector ready.

    Args:
        source: An ONNX file of the contract, or a TensorRT plan with the record beside it; the
            folder of a model repository; or the address of a running server (`grpc://HOST:PORT`,
            `http://HOST:PORT`).
        settings: What is asked of it.
        ensemble: The ensemble, of a repository or a server.
        engine: What runs a file: the name of a Triton backend.

    Raises:
        EvaluationError: There is no such file or folder, or the file is no detector of the
            contract.
        RepositoryError: The folder is no model repository.
        EngineError: The model cannot be loaded.
        DetectionClientError: The server cannot be asked.
    """
    asked = asdict(settings or EvaluationSettings())
    if "://" in str(source):
        with DetectionClient(str(source), model=ensemble) as client:
            labels = client.model_info().labels
            name = f"{ensemble} at {client.url}"
            yield Source(name, labels, functools.partial(client.detect, **asked))
        return
    path = Path(source)
    if path.is_dir():
        pipeline = Pipeline.from_repository(path, ensemble=ensemble)
        name = f"{ensemble} of {path}"
    elif path.is_file():
        pipeline = _pipeline_of_file(path, engine)
        name = f"{path} ({engine})" if engine != "onnxruntime" else str(path)
    else:
        raise EvaluationError(
            f"{source} is neither a file, nor a folder, nor an address like grpc://localhost:8001"
        )
    yield Source(name, pipeline.labels, functools.partial(pipeline.detect, **asked))


def _pipeline_of_file(path: Path, engine: str) -> Pipeline:
    try:
        info = _info_of_file(path, engine)
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"evaluating a file needs {error.name}: pip install 'detserve[model]'"
        ) from error
    return Pipeline(
        load_engine(path, engine, intra_op_threads=1),
        info.preprocess_settings(),
        SelectionSettings(iou_threshold=info.iou_threshold),
        info.labels,
    )


def _info_of_file(path: Path, engine: str) -> DetectorInfo:
    from contract import ContractError, load_model  # a server is evaluated without onnx

    if engine != "tensorrt":
        try:
            return load_model(path)[1]
        except ContractError as error:
            raise EvaluationError(str(error)) from error
    from plan import PlanError, PlanRecord

    try:
        return PlanRecord.read(path).detector
    except PlanError as error:
        raise EvaluationError(str(error)) from error


def evaluate_source(
    source: str | Path,
    dataset: Dataset,
    settings: EvaluationSettings | None = None,
    *,
    ensemble: str = "detection",
    engine: str = "onnxruntime",
    concurrency: int | None = None,
) -> Evaluation:
    """Evaluate a file, a repository or a server; arguments and errors are those of both.

    See `open_source` and `evaluate`.
    """
    settings = settings or EvaluationSettings()
    if concurrency is None and "://" in str(source):
        concurrency = _REQUESTS
    with open_source(source, settings, ensemble=ensemble, engine=engine) as opened:
        result = evaluate(
            opened.detect, dataset, opened.labels, source=opened.name, concurrency=concurrency
        )
    return replace(result, settings=asdict(settings))


def evaluate_file(
    path: Path,
    dataset: Dataset,
    settings: EvaluationSettings | None = None,
    *,
    engine: str = "onnxruntime",
    concurrency: int | None = None,
) -> Evaluation:
    """Evaluate a detector's ONNX file in this process: one thread an image."""
    return evaluate_source(path, dataset, settings, engine=engine, concurrency=concurrency)


def evaluate_repository(
    path: Path,
    dataset: Dataset,
    settings: EvaluationSettings | None = None,
    *,
    ensemble: str = "detection",
    concurrency: int | None = None,
) -> Evaluation:
    """Evaluate in this process what a server would serve from a model repository."""
    return evaluate_source(path, dataset, settings, ensemble=ensemble, concurrency=concurrency)


def evaluate_server(
    url: str,
    dataset: Dataset,
    settings: EvaluationSettings | None = None,
    *,
    ensemble: str = "detection",
    concurrency: int = _REQUESTS,
) -> Evaluation:
    """Evaluate a running server through the whole ensemble, with several requests in flight."""
    return evaluate_source(url, dataset, settings, ensemble=ensemble, concurrency=concurrency)
