"""Which layers int8 harms, and the fewest of them that have to stay in float.

Every layer is quantised alone; what that adds to the detector's raw predictions, as a share of
their variance (the inverse of the signal-to-quantisation-noise ratio), ranks it. Then layers are
left in float in that order until the detector is accurate enough: how many is searched for by
doubling and halving, on real detections.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from tqdm import tqdm

from optimization.calibration import Range
from optimization.errors import OptimizationError
from optimization.int8 import quantize
from optimization.network import Network
from optimization.simulation import session

__all__ = ["LayerNoise", "fewest_float_layers", "rank_layers"]

UInt8Array = npt.NDArray[np.uint8]

_IMAGES = 4  # enough to rank: noise is measured on every element of the predictions


@dataclass(frozen=True)
class LayerNoise:
    """What quantising one layer alone does.

    Attributes:
        layer: The convolution's output tensor.
        shape: Of its weights.
        noise: Mean square error of the raw predictions over their variance.
    """

    layer: str
    shape: tuple[int, ...]
    noise: float


def rank_layers(
    model: onnx.ModelProto, ranges: Mapping[str, Range], target: str, pixels: UInt8Array
) -> list[LayerNoise]:
    """Measure what quantising each convolution alone does, the most harmful first.

    Args:
        model: A float32 detector, from `int8.prepare`.
        ranges: Of its tensors.
        target: Key of `int8.FORMS`.
        pixels: uint8 [N, H, W, 3]; a few of them are looked at.
    """
    network = Network(model)
    heads = network.predictions()
    chosen = np.linspace(0, len(pixels) - 1, min(_IMAGES, len(pixels))).round().astype(int)
    images = [pixels[index][None] for index in chosen]
    reference = session(model, heads)
    expected = [reference.run(heads, {"images": image}) for image in images]
    layers = network.convolutions()
    names = {layer.output[0] for layer in layers}
    found = []
    for layer in tqdm(layers, desc="measuring layers", unit="layer", disable=None):
        name = layer.output[0]
        alone = session(quantize(model, ranges, target, names - {name}), heads)
        errors = [
            np.mean((value - wanted) ** 2) / max(float(np.var(wanted)), 1e-12)
            for image, values in zip(images, expected, strict=True)
            for value, wanted in zip(alone.run(heads, {"images": image}), values, strict=True)
        ]
        weight = network.constant(layer.input[1])
        assert weight is not None  # `Network.convolutions`
        found.append(LayerNoise(name, weight.shape, float(np.mean(errors))))
    return sorted(found, key=lambda layer: -layer.noise)


def fewest_float_layers(
    ranked: Sequence[LayerNoise], loss: Callable[[frozenset[str]], float], limit: float
) -> frozenset[str]:
    """Find how many of the most harmful layers must stay in float.

    Args:
        ranked: From `rank_layers`.
        loss: What is lost when these layers stay in float; measured, so it may be slow.
        limit: The most that may be lost.

    Raises:
        OptimizationError: More is lost even with half of the layers in float.
    """

    def of(count: int) -> frozenset[str]:
        return frozenset(layer.layer for layer in ranked[:count])

    losses: dict[int, float] = {}

    def fits(count: int) -> bool:
        losses[count] = loss(of(count))
        return losses[count] <= limit

    most = len(ranked) // 2
    low, high = -1, 0  # the greatest count that is known to be too few, and the next to try
    while not fits(high):
        if high >= most:
            best = min(losses, key=lambda count: losses[count])
            raise OptimizationError(
                f"int8 loses {losses[best]:.4f} even with {best} of {len(ranked)} layers in"
                f" float, more than the {limit:g} allowed: more calibration images or another"
                " method may help, or this detector is better served in float"
            )
        low, high = high, min(max(1, 2 * high), most)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return of(high)
