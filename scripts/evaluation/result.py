"""What an evaluation gives, and comparing two of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

__all__ = ["ClassAccuracy", "Evaluation", "EvaluationError"]


class EvaluationError(RuntimeError):
    """Nothing could be evaluated, or not compared; the message says why."""


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy:
    """The accuracy for one class.

    Attributes:
        class_id: The class's number in the dataset.
        name: The class, as the dataset calls it or else the detector.
        map: Average precision over the IoUs 0.50, 0.55, to 0.95.
        map50: At an IoU of 0.50.
        objects: How many there were to find.
        images: How many images they are in.
    """

    class_id: int
    name: str
    map: float
    map50: float
    objects: int
    images: int


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How accurate a detector is: COCO's metrics, 0 to 1, with at most 100 detections an image.

    Attributes:
        source: What was evaluated.
        map: Mean average precision over the classes and the IoUs 0.50, 0.55, to 0.95.
        map50: The same at an IoU of 0.50 only.
        map75: The same at 0.75.
        map_small: The same as `map` for objects under 32^2 square pixels; None without any.
        map_medium: For objects between 32^2 and 96^2.
        map_large: For objects over 96^2.
        recall: Mean over the classes and IoUs of the greatest recall.
        per_class: By class id; classes without an object are not in it.
        images: How many images were asked about.
        objects: How many objects there were to find, crowds not counted.
        detections: How many were answered.
        failures: Name of an image and why there was no answer; its objects count as missed.
        dataset: `Dataset.fingerprint`: only evaluations with the same one can be compared.
        settings: `EvaluationSettings` as a dictionary; empty where they are not known.
        notes: What else the user should know.
    """

    source: str
    map: float
    map50: float
    map75: float
    map_small: float | None
    map_medium: float | None
    map_large: float | None
    recall: float
    per_class: tuple[ClassAccuracy, ...]
    images: int
    objects: int
    detections: int
    failures: tuple[tuple[str, str], ...] = ()
    dataset: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As nested dictionaries and lists, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave.

        Raises:
            EvaluationError: It is something else.
        """
        try:
            return cls(
                **{
                    **values,
                    "per_class": tuple(ClassAccuracy(**entry) for entry in values["per_class"]),
                    "failures": tuple((name, why) for name, why in values["failures"]),
                    "notes": tuple(values["notes"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise EvaluationError(f"it is no result of an evaluation: {error}") from error

    def drop_from(self, reference: Evaluation) -> float:
        """How much less `map` is than the reference's; negative if it is more.

        Raises:
            EvaluationError: The two were measured on other images, labels or classes, or with
                other thresholds.
        """
        if self.dataset != reference.dataset:
            raise EvaluationError(
                f"{reference.source} was evaluated on other images or labels"
                f" ({reference.images} images, {reference.objects} objects) than {self.source}"
                f" ({self.images} images, {self.objects} objects): evaluate both on the same"
            )
        if self.settings != reference.settings:
            raise EvaluationError(
                f"{reference.source} was evaluated with {dict(reference.settings)},"
                f" {self.source} with {dict(self.settings)}: use the same thresholds"
            )
        ours, theirs = (
            {entry.class_id: entry.name for entry in e.per_class} for e in (self, reference)
        )
        if ours.keys() != theirs.keys():
            one = [(ours | theirs)[class_id] for class_id in sorted(ours.keys() ^ theirs.keys())]
            raise EvaluationError(
                f"{self.source} and {reference.source} know other classes of the dataset:"
                f" {', '.join(one)} is known to one only"
            )
        return reference.map - self.map
