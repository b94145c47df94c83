"""Accuracy without labels: what the detector itself is sure of is what its variants must find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detserve.detections import Detections
from evaluation import Dataset, EvaluationError, EvaluationSettings, LabelledImage, open_source
from evaluation.dataset import Objects

__all__ = ["agreement_dataset", "label"]

_SURE = 0.3  # score from which a detection counts as an object


def label(
    images: Sequence[Path], answers: Sequence[Detections | Exception], labels: Sequence[str]
) -> Dataset:
    """Label images with what a detector has answered.

    Args:
        images: The images.
        answers: What was found in each; those that failed are left out, with a note.
        labels: The names of the detector's classes by index.
    """
    labelled = tuple(
        LabelledImage(path, Objects.of(answer.boxes_xyxy.tolist(), answer.class_ids.tolist()))
        for path, answer in zip(images, answers, strict=True)
        if isinstance(answer, Detections)
    )
    left_out = len(images) - len(labelled)
    notes = (f"{left_out} images could not be used",) if left_out else ()
    return Dataset(labelled, dict(enumerate(labels)), notes=notes)


def agreement_dataset(model: Path, images: Sequence[Path]) -> Dataset:
    """Label images with a detector's own sure detections.

    Raises:
        EvaluationError: It is sure of nothing in them.
    """
    settings = replace(EvaluationSettings(), score_threshold=_SURE)
    with open_source(model, settings) as source:
        answers = [source.detect(path.read_bytes()) for path in images]
        labels = source.labels
    dataset = label(images, answers, labels)
    if not dataset.objects:
        raise EvaluationError(
            f"{model} is sure of nothing (score {_SURE:g} and more) in {len(images)} images: give"
            " labelled ones with --images"
        )
    return dataset
