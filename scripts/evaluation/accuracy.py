"""Running a detector over labelled images."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from rich.console import Console
from tqdm import tqdm

from detection_client import (
    AccessDeniedError,
    DetectionClientError,
    ModelNotFoundError,
    ServerUnavailableError,
)
from detserve.decoding import ImageError
from detserve.detections import Detections
from evaluation.classes import match_classes
from evaluation.dataset import Dataset, LabelledImage
from evaluation.metrics import import_coco, measure
from evaluation.result import Evaluation, EvaluationError

__all__ = ["evaluate"]

# What every further image would meet as well.
_FATAL_ERRORS = (ServerUnavailableError, ModelNotFoundError, AccessDeniedError)


def evaluate(
    detect: Callable[[bytes], Detections],
    dataset: Dataset,
    labels: Sequence[str],
    *,
    source: str = "detector",
    concurrency: int | None = None,
) -> Evaluation:
    """Run a detector on every image and compare with what there is.

    Args:
        detect: Encoded image to detections; called from several threads. It should report down
            to a score of about 0.001 and up to 100 detections: precision is averaged over all
            recalls, and the low scores are the high recalls.
        dataset: The labelled images.
        labels: The names of the detector's classes by index; may be empty.
        source: What is evaluated, for the progress bar and the result.
        concurrency: How many images are under way at once; None for one a core.

    Raises:
        DatasetError: The dataset's classes cannot be matched with the detector's.
        EvaluationError: pycocotools is missing.
        DetectionClientError: The server cannot be asked at all. What goes wrong with one image
            is a failure in the result.
    """
    import_coco()  # before the work, not after it
    to_detector, notes = match_classes(dataset, labels)
    if not any((_known(image, to_detector)).any() for image in dataset.images):
        raise EvaluationError("the dataset holds no object of a class that the detector knows")
    threads = concurrency or len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        answers = list(
            tqdm(
                pool.map(lambda image: _ask(detect, image), dataset.images),
                total=len(dataset.images),
                desc=f"evaluating {source}",
                unit="image",
                disable=None,
                leave=False,
            )
        )
    found = [a if isinstance(a, Detections) else Detections.empty() for a in answers]
    failures = tuple(
        (image.path.name, answer)
        for image, answer in zip(dataset.images, answers, strict=True)
        if isinstance(answer, str)
    )
    names = {
        class_id: labels[index] if labels and not dataset.names else dataset.name_of(class_id)
        for class_id, index in to_detector.items()
    }
    with Console(stderr=True).status("comparing the detections with the labels"):
        metrics = measure(dataset, found, to_detector, names)
    return Evaluation(
        **metrics,
        source=source,
        images=len(dataset.images),
        detections=sum(map(len, found)),
        failures=failures,
        dataset=dataset.fingerprint(),
        notes=(*dataset.notes, *notes),
    )


def _ask(detect: Callable[[bytes], Detections], image: LabelledImage) -> Detections | str:
    try:
        return detect(image.path.read_bytes())
    except _FATAL_ERRORS:
        raise
    except (ImageError, DetectionClientError) as error:
        return str(error)


def _known(image: LabelledImage, to_detector: Mapping[int, int]) -> npt.NDArray[np.bool_]:
    return np.isin(image.objects.classes, list(to_detector)) & ~image.objects.crowds
