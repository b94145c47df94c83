"""The examination of a new version: on which images, against what, in which of its places."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from detection_client import DetectionClientError
from evaluation import (
    Dataset,
    Evaluation,
    EvaluationSettings,
    evaluate_file,
    load_dataset,
)
from evaluation.datasets import IMAGE_SUFFIXES
from families import DetectorImportError
from import_detector import verify
from promotion.errors import GateError, PromotionError
from promotion.gates import Limits, Smoke, Witness, agreement_dataset, check_accuracy, smoke
from promotion.stages import Stage, Stages

__all__ = ["Exam", "Images"]

_SAMPLES = 4  # images of the user's for a smoke inference
_EQUAL = 0.002  # mAP by which a file and what is served of it may differ without a word
_SAME = 0.005  # mAP by which the candidate and the public name may differ: batches, not models


@dataclass(frozen=True, kw_only=True)
class Images:
    """What to examine with.

    Attributes:
        folder: Folder of images; None for smoke inferences only.
        annotations: Their labels; see `evaluation.load_dataset`.
        limit: Only so many images, the first by name.
        again: How many of them are asked again under the public name.
        concurrency: Requests in flight.
        agreement: Lowest mAP against the current version's answers, where there are no labels.
        smoke_only: Whether they are for smoke inferences alone.
        smoke_timeout: Seconds that a smoke inference may take.
    """

    folder: Path | None = None
    annotations: Path | None = None
    limit: int | None = None
    again: int = 500
    concurrency: int = 4
    agreement: float = 0.8
    smoke_only: bool = False
    smoke_timeout: float = 20.0


class Exam:
    """The same questions for the current version and for the new one.

    Args:
        url: The server.
        ensemble: Its public name.
        images: What to examine with.
        limits: What passes.
        stages: Where to tell what is done.
    """

    def __init__(
        self, url: str, ensemble: str, images: Images, limits: Limits, stages: Stages
    ) -> None:
        self._url = url
        self._ensemble = ensemble
        self._images = images
        self._limits = limits
        self._stages = stages
        self._settings = EvaluationSettings()
        self._dataset: Dataset | None = None
        self._reference: Evaluation | None = None
        self._in_process: Evaluation | None = None
        self._candidate: Witness | None = None
        self._found_now = 0  # in smoke inferences
        self._measure = "mAP"  # what `Evaluation.map` is

    def ask_current(self) -> None:
        """Read the images, and evaluate what the server answers now.

        A current version that fails the smoke inferences may well be replaced.

        Raises:
            DatasetError: The images or labels cannot be used.
            PromotionError: The current version is of no use as a reference.
            DetectionClientError: The server cannot be asked.
        """
        with self._stages.stage("current version") as stage:
            try:
                self._found_now = self._ask_smoke("", self._ensemble).detections
            except GateError as error:
                stage.say(f"the current version fails{error}")
            if self._images.folder is None or self._images.smoke_only:
                return
            if self._images.annotations is None and not _has_labels(self._images.folder):
                self._dataset = agreement_dataset(self._url, self._ensemble, self._paths())
                self._limits = replace(self._limits, max_drop=None, min_map=self._images.agreement)
                self._measure = "agreement"
                stage.say(
                    f"no labels: its {self._dataset.objects} sure detections in"
                    f" {len(self._dataset.images)} images are what a new version has to agree with"
                )
            else:
                self._dataset = load_dataset(
                    self._images.folder, self._images.annotations, self._images.limit
                )
            for note in self._dataset.notes:
                stage.say(note)
            if self._limits.max_drop is not None:
                witness = Witness(self._url, self._ensemble)
                self._reference = witness.evaluate(
                    self._dataset, self._settings, self._images.concurrency
                )
                self._tell(stage, self._reference)

    def in_process(self, model: Path, engine: str) -> None:
        """Evaluate a file in this process.

        Raises:
            GateError: It is not good enough.
            EngineError: It does not run here.
        """
        with self._stages.stage("in process") as stage:
            if engine == "onnxruntime":
                try:
                    verify(model)
                except DetectorImportError as error:
                    raise GateError("run in process", str(error)) from error
                stage.say("candidates are finite, sorted, and the same in every batch")
            if self._dataset is None:
                return
            result = evaluate_file(model, self._dataset, self._settings, engine=engine)
            self._tell(stage, result)
            self._in_process = result
            check_accuracy("accuracy in process", result, self._reference, self._limits)

    def candidate(self, name: str) -> None:
        """Examine the new version under its own name, through the server.

        Raises:
            GateError: It does not answer, or not well enough.
        """
        self._smoke("smoke inference", name)
        if self._dataset is None:
            return
        with self._stages.stage("served accuracy") as stage:
            self._candidate = Witness(self._url, name)
            try:
                result = self._candidate.evaluate(
                    self._dataset, self._settings, self._images.concurrency
                )
            except DetectionClientError as error:
                raise GateError("served accuracy", str(error)) from error
            self._tell(stage, result)
            if self._in_process is not None and abs(result.map - self._in_process.map) > _EQUAL:
                stage.say(
                    f"in process it was {self._in_process.map:.4f}: the runtime there is"
                    " another, or the thresholds of the postprocessing were tuned"
                )
            check_accuracy("served accuracy", result, self._reference, self._limits)

    def public(self) -> None:
        """See after the switch that the public name gives the new version's answers.

        Raises:
            GateError: It does not.
        """
        self._smoke("smoke after switch", self._ensemble)
        if self._dataset is None or self._candidate is None:
            return
        gate = "accuracy after switch"
        with self._stages.stage(gate) as stage:
            again = Dataset(
                tuple(islice(self._dataset.images, self._images.again)),
                self._dataset.names,
                self._dataset.coco_ids,
            )
            before = self._candidate.recall(again, self._settings)
            try:
                result = Witness(self._url, self._ensemble).evaluate(
                    again, self._settings, self._images.concurrency
                )
            except DetectionClientError as error:
                raise GateError(gate, str(error)) from error
            self._tell(stage, result)
            limits = Limits(max_drop=_SAME, max_failures=self._limits.max_failures)
            check_accuracy(gate, result, before, limits)

    def _tell(self, stage: Stage, result: Evaluation) -> None:
        stage.say(
            f"{self._measure} {result.map:.4f}, {self._measure}50 {result.map50:.4f} on"
            f" {result.images} images ({result.source})",
            map=result.map,
            map50=result.map50,
            images=result.images,
            failures=len(result.failures),
        )

    def _smoke(self, gate: str, ensemble: str) -> None:
        with self._stages.stage(gate) as stage:
            answers = self._ask_smoke(gate, ensemble)
            if self._found_now and not answers.detections:
                raise GateError(
                    gate,
                    f"{ensemble} finds nothing at all in {answers.images} images, where the current"
                    f" version has {self._found_now} detections of any score",
                )
            stage.say(
                f"{ensemble} answers: {answers.detections} detections of any score in"
                f" {answers.images} images",
                images=answers.images,
            )

    def _ask_smoke(self, gate: str, ensemble: str) -> Smoke:
        samples = {path.name: path.read_bytes() for path in self._paths()[:_SAMPLES]}
        return smoke(gate, self._url, ensemble, samples, self._images.smoke_timeout)

    def _paths(self) -> list[Path]:
        folder = self._images.folder
        if folder is None:
            return []
        if self._dataset is not None:
            return [image.path for image in self._dataset.images]
        paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            missing = "there is no folder" if not folder.is_dir() else "there are no images in"
            raise PromotionError(f"{missing} {folder}")
        return paths[: self._images.limit]


def _has_labels(images: Path) -> bool:
    """Whether there are label files where `evaluation.load_dataset` looks for them."""
    parts = images.absolute().parts
    beside = [
        Path(*parts[:index], "labels", *parts[index + 1 :])
        for index, part in enumerate(parts)
        if part == "images"
    ]
    return any(folder.is_dir() for folder in beside) or any(images.rglob("*.txt"))
