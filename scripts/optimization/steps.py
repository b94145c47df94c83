"""The steps from a float32 detector to an optimised one, and what each of them did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from contract import DetectorInfo
from optimization.calibration import load_images
from optimization.channels import prune_channels
from optimization.cleanup import clean
from optimization.errors import OptimizationError
from optimization.fp16 import to_float16
from optimization.post_training import Int8Options, Int8Result, to_int8
from optimization.pruning import prune_2_4, prune_unstructured, sparsity_by_layer

__all__ = ["Pruning", "StepReport", "optimize"]


@dataclass(frozen=True)
class Pruning:
    """What to prune.

    Attributes:
        kind: `l1`, `2:4` or `channels`.
        fraction: Of the weights (`l1`) or the multiplications (`channels`) to remove.
    """

    kind: str
    fraction: float = 0.5

    @classmethod
    def parse(cls, text: str) -> Pruning:
        """Read `l1:0.5`, `2:4` or `channels:0.3`.

        Raises:
            ValueError: It is something else.
        """
        if text == "2:4":
            return cls("2:4")
        kind, _, fraction = text.partition(":")
        if kind not in ("l1", "channels") or not 0 < float(fraction) < 1:
            raise ValueError
        return cls(kind, float(fraction))

    def __str__(self) -> str:
        return self.kind if self.kind == "2:4" else f"{self.kind}:{self.fraction:g}"


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        step: Its name.
        nodes: How many nodes the graph had before and has after.
        size_mb: Size of the file before and after, in megabytes.
        notes: What else there is to say.
    """

    step: str
    nodes: tuple[int, int]
    size_mb: tuple[float, float]
    notes: tuple[str, ...] = ()


def optimize(
    model: onnx.ModelProto,
    *,
    clean_graph: bool = False,
    pruning: Pruning | None = None,
    fp16: bool = False,
    int8: Int8Options | None = None,
    calibration: Path | None = None,
) -> tuple[onnx.ModelProto, list[StepReport], Int8Result | None]:
    """Take a detector through the steps.

    Args:
        model: A float32 detector of the contract.
        clean_graph: Whether to clean up the graph.
        pruning: What to prune.
        fp16: Whether to convert to float16.
        int8: How to quantise.
        calibration: Folder of images for channel pruning to choose by; None goes by weights.

    Returns:
        The detector, with its variant in the metadata; a report a step; and int8's own.

    Raises:
        OPTIMIZE_ERRORS: What each step's function raises.
    """
    if fp16 and int8 is not None:
        raise OptimizationError("float16 and int8 exclude each other: choose one of them")
    reports: list[StepReport] = []
    quantised: list[Int8Result] = []

    def step(
        name: str, change: Callable[[onnx.ModelProto], tuple[onnx.ModelProto, list[str]]]
    ) -> None:
        nonlocal model
        after, notes = change(model)
        reports.append(
            StepReport(
                name,
                (len(model.graph.node), len(after.graph.node)),
                (model.ByteSize() / 1e6, after.ByteSize() / 1e6),
                tuple(notes),
            )
        )
        model = after

    def quantise(source: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
        assert int8 is not None
        quantised.append(to_int8(source, int8))
        return quantised[0].model, _notes_on(quantised[0])

    if clean_graph:
        step("clean", lambda source: (clean(source), []))
    if pruning is not None:
        step(f"prune {pruning}", lambda source: _prune(source, pruning, calibration))
    if fp16:
        step("fp16", lambda source: (_with_variant(to_float16(source), "fp16"), []))
    if int8 is not None:
        step("int8", quantise)
    return model, reports, quantised[0] if quantised else None


def _prune(
    model: onnx.ModelProto, pruning: Pruning, calibration: Path | None
) -> tuple[onnx.ModelProto, list[str]]:
    if pruning.kind == "channels":
        images = None
        if calibration is not None:
            images = load_images(calibration, DetectorInfo.of(model), 64).pixels
        pruned = prune_channels(model, pruning.fraction, images=images)
        notes = (
            [] if images is not None else ["chosen by weights: images (--calibration) do better"]
        )
        notes.append("train it on, or evaluate it, before it is served")
    else:
        two_four = pruning.kind == "2:4"
        pruned = prune_2_4(model) if two_four else prune_unstructured(model, pruning.fraction)
        layers = sparsity_by_layer(pruned)
        zeros = sum(layer.zeros for layer in layers)
        notes = [
            f"{zeros} weights of {len(layers)} layers are zero",
            "TensorRT may run layers of hundreds of channels faster; a CPU does not"
            if two_four
            else "no runtime runs it faster; the file compresses better",
            "train it on with the zeros held before it is served: as it is, accuracy is lost",
        ]
    return _with_variant(pruned, f"pruned-{pruning}"), notes


def _with_variant(model: onnx.ModelProto, variant: str) -> onnx.ModelProto:
    info = DetectorInfo.of(model)
    parts = [part for part in info.variant.split("+") if part != "fp32"]
    info.with_variant("+".join([*parts, variant])).write_to(model)
    return model


def _notes_on(result: Int8Result) -> list[str]:
    lost = result.reference - result.accuracy
    kept = len(result.float_layers)
    notes = [
        *result.notes,
        f"{result.measure} {result.accuracy:.4f}, {lost:.4f} less than in float"
        f" ({result.reference:.4f})",
        f"{result.layers - kept} of {result.layers} convolutions in int8",
    ]
    noise = {layer.layer: layer.noise for layer in result.ranked}
    notes += [
        f"in float: {name} (noise {noise[name]:.2g} alone)"
        for name in sorted(result.float_layers, key=lambda name: -noise[name])
    ]
    return notes
