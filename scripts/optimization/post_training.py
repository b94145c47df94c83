"""From a float32 detector to an int8 one that is as accurate as was asked."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from contract import DetectorInfo
from evaluation import Dataset
from evaluation.agreement import agreement_dataset
from optimization.accuracy import Yardstick
from optimization.calibration import (
    METHODS,
    CalibrationImages,
    Range,
    collect,
    image_files,
    load_images,
)
from optimization.errors import OptimizationError
from optimization.int8 import FORMS, prepare, quantize
from optimization.network import Network
from optimization.placement import place
from optimization.sensitivity import LayerNoise, fewest_float_layers, rank_layers

__all__ = ["Int8Options", "Int8Result", "to_int8"]

_FEWEST = 16  # images that an accuracy is worth measuring on
_MOST = 128  # images without labels that it is measured on
_MAX_DROP = 0.01
_MAX_DISAGREEMENT = 0.1


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """How to quantise a detector.

    Attributes:
        calibration: Folder of images to find the tensors' ranges on.
        images: How many of them are taken, evenly spread over the names.
        target: The runtime that it is for, a key of `int8.FORMS`.
        method: How a range is chosen, a key of `calibration.METHODS`.
        dataset: Labelled images to measure the accuracy on; without them it is the agreement with
            the float detector, on images of `calibration`.
        max_drop: The most that may be lost of the mAP or, without labels, of the agreement (an mAP
            too, against what the float detector is sure of); None for 0.01 and 0.1.
        rank: Whether every layer's noise is measured even if none has to stay in float.
    """

    calibration: Path
    images: int = 32
    target: str = "onnxruntime"
    method: str = "mse"
    dataset: Dataset | None = None
    max_drop: float | None = None
    rank: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("target", self.target, FORMS),
            ("method", self.method, METHODS),
        ):
            if value not in known:
                raise OptimizationError(f"unknown {name} {value!r}: choose from {sorted(known)}")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise OptimizationError(f"max_drop must be between 0 and 1, got {self.max_drop:g}")

    @property
    def limit(self) -> float:
        """The most that may be lost."""
        if self.max_drop is not None:
            return self.max_drop
        return _MAX_DISAGREEMENT if self.dataset is None else _MAX_DROP


@dataclass(frozen=True, kw_only=True)
class Int8Result:
    """An int8 detector and how it came about.

    Attributes:
        model: The detector.
        layers: How many convolutions there are.
        float_layers: Those that stayed in float, by their output tensors.
        ranked: All of them by the noise that quantising each alone adds; empty if that was not
            needed.
        measure: What `reference` and `accuracy` are: `mAP` or `agreement`.
        reference: The float detector's.
        accuracy: The int8 detector's.
        tried: Number of float layers to the accuracy that was measured.
        notes: What else the user should know.
    """

    model: onnx.ModelProto
    layers: int
    float_layers: frozenset[str]
    ranked: tuple[LayerNoise, ...]
    measure: str
    reference: float
    accuracy: float
    tried: Mapping[int, float]
    notes: tuple[str, ...] = ()

    def table(self) -> dict[str, Any]:
        """The measurements, for JSON."""
        return {
            "measure": self.measure,
            "reference": self.reference,
            "accuracy": self.accuracy,
            "accuracy_by_float_layers": {str(count): self.tried[count] for count in self.tried},
            "layers": [
                asdict(layer) | {"float": layer.layer in self.float_layers} for layer in self.ranked
            ],
        }


def to_int8(model: onnx.ModelProto, options: Int8Options) -> Int8Result:
    """Quantise a detector, leaving in float what costs more accuracy than is allowed.

    Args:
        model: A float32 detector of the contract.
        options: How.

    Raises:
        OptimizationError: It cannot be quantised, the images are none, or too much is lost.
        EngineError: The runtime that it is for does not take it.
        EvaluationError: pycocotools is missing, or the images have no objects.
        DatasetError: The labels are for other classes.
    """
    info = DetectorInfo.of(model)
    model = prepare(model)
    images = load_images(options.calibration, info, options.images)
    placement = place(model, FORMS[options.target].results)
    histograms = collect(model, placement.tensors, images.pixels)
    ranges = {name: item.range(options.method) for name, item in histograms.items()}
    dataset, notes = _dataset(model, images, options)
    reference = Yardstick(dataset, "onnxruntime").measure(model, "the float detector").map
    yardstick = Yardstick(dataset, options.target)
    tried: dict[frozenset[str], float] = {}

    def loss(float_layers: frozenset[str]) -> float:
        if float_layers not in tried:
            quantised = quantize(model, ranges, options.target, float_layers)
            name = f"int8 with {len(float_layers)} layers in float"
            tried[float_layers] = yardstick.measure(quantised, name).map
        return reference - tried[float_layers]

    chosen, ranked = _choose(model, ranges, images, options, loss)
    quantised = quantize(model, ranges, options.target, chosen)
    suffix = "" if options.target == "onnxruntime" else f"-{options.target}"
    parts = [part for part in info.variant.split("+") if part != "fp32"]
    info.with_variant("+".join([*parts, f"int8{suffix}"])).write_to(quantised)
    return Int8Result(
        model=quantised,
        layers=len(Network(model).convolutions()),
        float_layers=chosen,
        ranked=tuple(ranked),
        measure="agreement" if options.dataset is None else "mAP",
        reference=reference,
        accuracy=tried[chosen],
        tried={len(layers): tried[layers] for layers in tried},
        notes=(
            f"calibrated on {len(images.paths)} images by {options.method}",
            *(f"left out: {reason}" for reason in images.unreadable),
            *notes,
        ),
    )


def _choose(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    images: CalibrationImages,
    options: Int8Options,
    loss: Callable[[frozenset[str]], float],
) -> tuple[frozenset[str], list[LayerNoise]]:
    """Which layers stay in float; ranking them takes long and is put off until it is needed."""
    fits = loss(frozenset()) <= options.limit
    if fits and not options.rank:
        return frozenset(), []
    ranked = rank_layers(model, ranges, options.target, images.pixels)
    chosen = frozenset() if fits else fewest_float_layers(ranked, loss, options.limit)
    return chosen, ranked


def _dataset(
    model: onnx.ModelProto, images: CalibrationImages, options: Int8Options
) -> tuple[Dataset, list[str]]:
    """What the accuracy is measured on: images that were not calibrated with, if there are any."""
    used = {path.resolve() for path in images.paths}
    if options.dataset is not None:
        others = [item for item in options.dataset.images if item.path.resolve() not in used]
        if len(others) >= _FEWEST and len(others) < len(options.dataset.images):
            return replace(options.dataset, images=tuple(others)), [
                f"measured on the {len(others)} labelled images that were not calibrated with"
            ]
        count = len(options.dataset.images)
        which = ", some of them calibrated with, for want of others" if len(others) < count else ""
        return options.dataset, [f"measured on {count} labelled images{which}"]
    spare = [path for path in image_files(options.calibration) if path.resolve() not in used]
    held_out = len(spare) >= _FEWEST
    paths = spare[:: max(1, -(-len(spare) // _MOST))] if held_out else list(images.paths)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "float.onnx"
        file.write_bytes(model.SerializeToString())
        dataset = agreement_dataset(file, paths)
    which = "not calibrated with" if held_out else "calibrated with, for want of others"
    return dataset, [f"measured without labels, on {len(paths)} images {which}"]
