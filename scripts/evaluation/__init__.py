"""Accuracy of a detector on labelled images: COCO's mean average precision."""

from evaluation.accuracy import evaluate
from evaluation.dataset import Dataset, DatasetError, LabelledImage, Objects
from evaluation.datasets import load_dataset
from evaluation.result import ClassAccuracy, Evaluation, EvaluationError
from evaluation.sources import (
    EvaluationSettings,
    Source,
    evaluate_file,
    evaluate_repository,
    evaluate_server,
    evaluate_source,
    open_source,
)

__all__ = [
    "ClassAccuracy",
    "Dataset",
    "DatasetError",
    "Evaluation",
    "EvaluationError",
    "EvaluationSettings",
    "LabelledImage",
    "Objects",
    "Source",
    "evaluate",
    "evaluate_file",
    "evaluate_repository",
    "evaluate_server",
    "evaluate_source",
    "load_dataset",
    "open_source",
]
