"""What a new version has to pass: it answers at all, and as accurately as wanted."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from detection_client import DetectionClient, DetectionClientError
from detserve.decoding import EncodedImage, ImageError
from detserve.detections import Detections
from evaluation import Dataset, Evaluation, EvaluationSettings, evaluate
from evaluation.agreement import label
from promotion.errors import GateError, PromotionError

__all__ = [
    "Limits",
    "Smoke",
    "Witness",
    "agreement_dataset",
    "check_accuracy",
    "smoke",
]

_SURE = 0.5  # score above which the current version's detections count as objects
_ROUNDING = 1e-9  # so that 0.50 less 0.49 is no more than 0.01
_SLACK = 1.0  # pixels that a box may reach over the image's edge by rounding


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What accuracy passes.

    Attributes:
        max_drop: Most mAP that may be lost against the reference; None for no comparison.
        min_map: Lowest mAP that passes; None for any.
        max_failures: Most images without an answer.
    """

    max_drop: float | None = 0.01
    min_map: float | None = None
    max_failures: int = 0


@dataclass(frozen=True)
class Smoke:
    """What the smoke inferences gave: how many images, how many detections in all of them."""

    images: int
    detections: int


@dataclass
class Witness:
    """Asks an ensemble of a server, and keeps what it answered, for a later comparison.

    Attributes:
        answers: By a digest of the image.
        labels: Of the ensemble's classes.
    """

    url: str
    ensemble: str
    answers: dict[bytes, Detections] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def evaluate(
        self, dataset: Dataset, settings: EvaluationSettings, concurrency: int
    ) -> Evaluation:
        """Evaluate the ensemble; errors are those of `evaluation.evaluate`."""
        with DetectionClient(self.url, model=self.ensemble) as client:
            self.labels = client.model_info().labels

            def detect(image: bytes) -> Detections:
                answer = client.detect(image, **asdict(settings))
                with self._lock:
                    self.answers[hashlib.sha256(image).digest()] = answer
                return answer

            return _evaluate(
                detect,
                dataset,
                self.labels,
                f"{self.ensemble} at {client.url}",
                settings,
                concurrency,
            )

    def recall(self, dataset: Dataset, settings: EvaluationSettings) -> Evaluation:
        """What an evaluation of fewer images would have given."""

        def detect(image: bytes) -> Detections:
            answer = self.answers.get(hashlib.sha256(image).digest())
            if answer is None:
                raise DetectionClientError("there was no answer before")
            return answer

        return _evaluate(detect, dataset, self.labels, f"{self.ensemble} before", settings, 1)


def _evaluate(
    detect: Callable[[bytes], Detections],
    dataset: Dataset,
    labels: Sequence[str],
    source: str,
    settings: EvaluationSettings,
    concurrency: int,
) -> Evaluation:
    result = evaluate(detect, dataset, labels, source=source, concurrency=concurrency)
    return replace(result, settings=asdict(settings))


def check_accuracy(
    gate: str, result: Evaluation, reference: Evaluation | None, limits: Limits
) -> None:
    """Compare an evaluation with what is wanted.

    Args:
        gate: What to call it.
        result: The evaluation.
        reference: The current version's, on the same images.
        limits: What passes.

    Raises:
        GateError: It is not good enough; the message says by how much.
        EvaluationError: The two cannot be compared.
    """
    if len(result.failures) > limits.max_failures:
        name, why = result.failures[0]
        raise GateError(
            gate,
            f"{len(result.failures)} of {result.images} images got no answer, and"
            f" {limits.max_failures} may: {name}: {why}",
        )
    if limits.min_map is not None and result.map < limits.min_map:
        raise GateError(
            gate,
            f"mAP {result.map:.4f} is {limits.min_map - result.map:.4f} under the least allowed,"
            f" {limits.min_map:g} (--min-map)",
        )
    if reference is not None and limits.max_drop is not None:
        drop = result.drop_from(reference)
        if drop > limits.max_drop + _ROUNDING:
            raise GateError(
                gate,
                f"mAP {result.map:.4f} is {drop:.4f} under the {reference.map:.4f} of"
                f" {reference.source}; at most {limits.max_drop:g} is allowed (--max-drop)",
            )


def agreement_dataset(url: str, ensemble: str, paths: Sequence[Path]) -> Dataset:
    """Take what the current version is sure of for what there is to find.

    Args:
        url: The server.
        ensemble: The ensemble.
        paths: The images; those that cannot be read are left out.

    Raises:
        PromotionError: It finds nothing, so that nothing can be agreed with.
        DetectionClientError: The server cannot be asked.
    """
    with DetectionClient(url, model=ensemble) as client:
        labels = client.model_info().labels
        answers = client.detect_batch(paths, score_threshold=_SURE, return_exceptions=True)
    dataset = label(paths, answers, labels)
    if not dataset.objects:
        raise PromotionError(
            f"the current version of {ensemble} is sure of nothing (score {_SURE:g} and more) in"
            f" these {len(paths)} images: there is nothing that a new one could agree with. Give"
            " labelled images, or none and --no-evaluate"
        )
    return dataset


def smoke(gate: str, url: str, ensemble: str, images: Mapping[str, bytes], timeout: float) -> Smoke:
    """Ask an ensemble for a few inferences, and look at whether the answers can be answers.

    Args:
        gate: What to call it.
        url: The server.
        ensemble: The ensemble.
        images: Encoded images by name; two of our own are asked besides.
        timeout: Seconds that an answer may take.

    Raises:
        GateError: It does not answer, or answers nonsense.
    """
    detections = 0
    asked = {**_own_images(), **images}
    with DetectionClient(url, model=ensemble, timeout=timeout, retries=0) as client:
        for name, image in asked.items():
            try:
                found = client.detect(image, score_threshold=0.0)
            except DetectionClientError as error:
                raise GateError(gate, f"{name}: {error}") from error
            problem = nonsense(found, _size_wh(image))
            if problem is not None:
                raise GateError(gate, f"{name}: {problem}")
            detections += len(found)
    return Smoke(len(asked), detections)


def nonsense(found: Detections, size_wh: tuple[int, int] | None) -> str | None:
    """What in detections cannot be; None if nothing."""
    boxes, scores, classes = found.boxes_xyxy, found.scores, found.class_ids
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        return "boxes or scores are not finite"
    if ((scores < 0) | (scores > 1)).any():
        return f"scores from {scores.min():g} to {scores.max():g} are not between 0 and 1"
    if (np.diff(scores) > 1e-6).any():
        return "scores do not descend"
    if (boxes[:, 2:] < boxes[:, :2]).any():
        return "boxes end before they begin"
    if size_wh is not None and len(boxes):
        limit = np.array([*size_wh, *size_wh]) + _SLACK
        if (boxes < -_SLACK).any() or (boxes > limit).any():
            return f"boxes reach out of the image of {size_wh[0]} x {size_wh[1]} pixels"
    if found.labels and ((classes < 0) | (classes >= len(found.labels))).any():
        return f"a class from {classes.min()} to {classes.max()} has no label"
    return None


def _own_images() -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    images = {"an image of noise": noise, "a grey image": np.full((64, 48, 3), 114, np.uint8)}
    return {name: bytes(cv2.imencode(".png", image)[1]) for name, image in images.items()}


def _size_wh(image: bytes) -> tuple[int, int] | None:
    try:
        return EncodedImage(image, max_bytes=2**40, max_pixels=2**40).size_wh
    except ImageError:
        return None
