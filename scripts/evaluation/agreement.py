"""Accuracy without labels: what the detector itself is sure of is what its variants must find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evaluation import Dataset, EvaluationError, EvaluationSettings, LabelledImage, open_source
from evaluation.dataset import Objects

__all__ = ["agreement_dataset"]

_SURE = 0.3  # score from which a detection counts as an object


def agreement_dataset(model: Path, images: Sequence[Path]) -> Dataset:
    """Label images with a detector's own sure detections.

    Raises:
        EvaluationError: It is sure of nothing in them.
    """
    settings = replace(EvaluationSettings(), score_threshold=_SURE)
    with open_source(model, settings) as source:
        answers = [source.detect(path.read_bytes()) for path in images]
        labels = source.labels
    dataset = Dataset(
        tuple(
            LabelledImage(path, Objects.of(answer.boxes_xyxy.tolist(), answer.class_ids.tolist()))
            for path, answer in zip(images, answers, strict=True)
        ),
        dict(enumerate(labels)),
    )
    if not dataset.objects:
        raise EvaluationError(
            f"{model} is sure of nothing (score {_SURE:g} and more) in {len(images)} images: give"
            " labelled ones with --images"
        )
    return dataset
