"""COCO's metrics, as pycocotools computes them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from detserve.detections import Detections
from evaluation.dataset import Dataset
from evaluation.result import ClassAccuracy, EvaluationError

__all__ = ["MAX_DETECTIONS", "import_coco", "measure"]

MAX_DETECTIONS = 100  # an image, as COCO counts


def import_coco() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"evaluating needs {error.name}: pip install 'detserve[evaluate]'"
        ) from error
    return COCO, COCOeval


def measure(
    dataset: Dataset,
    found: Sequence[Detections],
    to_detector: Mapping[int, int],
    names: Mapping[int, str],
) -> dict[str, Any]:
    """The metrics by pycocotools, for the classes that the detector knows.

    Args:
        dataset: What there is to find.
        found: What was found, an entry an image.
        to_detector: Class id of the dataset to index of the detector's class.
        names: Class id of the dataset to what the class is called.

    Returns:
        Fields of `Evaluation`.
    """
    class_of = {index: class_id for class_id, index in to_detector.items()}
    annotations = [
        {
            "image_id": number,
            "category_id": int(class_id),
            "bbox": _xywh(box),
            "area": float(area),
            "iscrowd": int(crowd),
        }
        for number, image in enumerate(dataset.images, 1)
        for box, class_id, area, crowd in zip(
            image.objects.boxes_xyxy,
            image.objects.classes,
            image.objects.areas,
            image.objects.crowds,
            strict=True,
        )
        if int(class_id) in to_detector
    ]
    results = [
        {
            "image_id": number,
            "category_id": class_of[int(index)],
            "bbox": _xywh(box),
            "area": float((box[2] - box[0]) * (box[3] - box[1])),
            "score": float(score),
            "iscrowd": 0,
        }
        for number, detections in enumerate(found, 1)
        for box, index, score in zip(
            detections.boxes_xyxy.astype(np.float64),
            detections.class_ids,
            detections.scores,
            strict=True,
        )
        if int(index) in class_of
    ]
    coco, coco_eval = import_coco()
    with contextlib.redirect_stdout(io.StringIO()):  # it narrates
        truth, answers = (
            _as_coco(coco, entries, len(dataset.images), to_detector)
            for entries in (annotations, results)
        )
        evaluation = coco_eval(truth, answers, "bbox")
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    # [IoU, recall, class, area, maxDets]; -1 where there is no object
    precision: npt.NDArray[np.float64] = evaluation.eval["precision"][..., 0]
    ious = np.round(evaluation.params.iouThrs, 2)
    at_50, at_75 = (int(np.flatnonzero(ious == iou)[0]) for iou in (0.5, 0.75))
    areas = dict(zip(evaluation.params.areaRngLbl, range(precision.shape[3]), strict=True))
    everything = precision[..., areas["all"]]
    counted = [entry for entry in annotations if not entry["iscrowd"]]
    per_class = []
    for column, class_id in enumerate(map(int, evaluation.params.catIds)):
        of_class = [entry for entry in counted if entry["category_id"] == class_id]
        if of_class:
            per_class.append(
                ClassAccuracy(
                    class_id=class_id,
                    name=names[class_id],
                    map=_mean(everything[:, :, column]) or 0.0,
                    map50=_mean(everything[at_50, :, column]) or 0.0,
                    objects=len(of_class),
                    images=len({entry["image_id"] for entry in of_class}),
                )
            )
    return {
        "map": _mean(everything) or 0.0,
        "map50": _mean(everything[at_50]) or 0.0,
        "map75": _mean(everything[at_75]) or 0.0,
        **{f"map_{n}": _mean(precision[..., areas[n]]) for n in ("small", "medium", "large")},
        "recall": _mean(evaluation.eval["recall"][:, :, areas["all"], 0]) or 0.0,
        "per_class": tuple(per_class),
        "objects": len(counted),
    }


def _as_coco(
    coco: Any, entries: Iterable[dict[str, Any]], images: int, classes: Iterable[int]
) -> Any:
    made = coco()
    made.dataset = {
        "images": [{"id": number} for number in range(1, images + 1)],
        "categories": [{"id": class_id} for class_id in sorted(classes)],
        "annotations": [{**entry, "id": number} for number, entry in enumerate(entries, 1)],
    }
    made.createIndex()
    return made


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    """The mean of what there is; None if there is nothing."""
    there = values[values > -1]
    return float(there.mean()) if there.size else None


def _xywh(box_xyxy: npt.NDArray[np.float64]) -> list[float]:
    x1, y1, x2, y2 = box_xyxy.tolist()
    return [x1, y1, x2 - x1, y2 - y1]
