"""The ranges of a detector's tensors, found on images that went through the real preprocessing.

How a range is chosen from what was seen:

- `minmax`: all of it (Jacob et al., Quantization and Training of Neural Networks for Efficient
  Integer-Arithmetic-Only Inference, 2018).
- `percentile`: without the 0.001 % of the values at either end.
- `mse`: the range whose rounding and clipping errors are least in the mean square (as in Banner et
  al., Post Training 4-bit Quantization of Convolutional Networks, 2019, here by search).
- `entropy`: the clipping whose quantised distribution diverges least from what was seen (Migacz,
  8-bit Inference with TensorRT, GTC 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from tqdm import tqdm

from contract import DetectorInfo
from detserve.engines import ORT_ERRORS
from detserve.imaging import ImageError, preprocess
from optimization.errors import OptimizationError
from optimization.network import copy_model

__all__ = [
    "METHODS",
    "CalibrationImages",
    "Histogram",
    "Range",
    "collect",
    "image_files",
    "load_images",
]

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float64]
Range = tuple[float, float]

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
_BINS = 2048
_TAIL = 1e-5  # share of the values that `percentile` leaves out at each end
_LEVELS = 256
_STEPS = 64  # ranges that the searching methods try


@dataclass(frozen=True, eq=False)
class CalibrationImages:
    """Images as the detector sees them.

    Attributes:
        paths: The files.
        pixels: uint8 [N, H, W, 3], RGB, fitted to the detector's input.
        unreadable: Files that are no images, and why.
    """

    paths: tuple[Path, ...]
    pixels: UInt8Array
    unreadable: tuple[str, ...] = ()


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder and the folders in it, by name.

    Raises:
        OptimizationError: There are none.
    """
    if not folder.is_dir():
        raise OptimizationError(f"there is no folder of images {folder}")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise OptimizationError(
            f"{folder} holds no images ({', '.join(sorted(_SUFFIXES))}) to calibrate with"
        )
    return files


def load_images(folder: Path, info: DetectorInfo, limit: int) -> CalibrationImages:
    """Read images evenly spread over a folder, folders in it included.

    Args:
        folder: The folder.
        info: The detector: how images are fitted to its input.
        limit: How many are wanted, at most.

    Raises:
        OptimizationError: There is no folder, or no image in it that can be read.
    """
    if limit < 1:
        raise OptimizationError(f"at least 1 image is needed to calibrate, got {limit}")
    files = image_files(folder)
    spread = np.linspace(0, len(files) - 1, min(limit, len(files))).round().astype(int)
    settings = info.preprocess_settings()
    pixels = np.empty((len(spread), settings.height, settings.width, 3), np.uint8)
    paths: list[Path] = []
    unreadable: list[str] = []
    for index in spread:
        try:
            preprocess(files[index].read_bytes(), settings, pixels[len(paths)])
            paths.append(files[index])
        except (ImageError, OSError) as error:
            unreadable.append(f"{files[index].name}: {error}")
    if not paths:
        raise OptimizationError(f"{folder} holds no image that can be read: {unreadable[0]}")
    return CalibrationImages(tuple(paths), pixels[: len(paths)], tuple(unreadable))


@dataclass(frozen=True, eq=False)
class Histogram:
    """How a tensor's values are distributed.

    Attributes:
        counts: float64 [2048], over equal bins.
        low: Least value, and the first bin's edge.
        high: Greatest value, and the last bin's edge.
    """

    counts: FloatArray
    low: float
    high: float

    def range(self, method: str) -> Range:
        """The range to quantise, which holds 0; see the module for the methods."""
        low, high = METHODS[method](self)
        return min(low, 0.0), max(high, 0.0)


def collect(
    model: onnx.ModelProto, tensors: Iterable[str], pixels: UInt8Array
) -> dict[str, Histogram]:
    """Run a detector on images and tell how some of its tensors are distributed.

    Two passes, one for the ends and one for the bins, so that nothing is kept of an image.

    Args:
        model: A float32 detector of the contract.
        tensors: Names of float tensors.
        pixels: uint8 [N, H, W, 3].

    Raises:
        OptimizationError: The detector does not run.
    """
    names = sorted(set(tensors))
    tapped = copy_model(model)
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    ends = dict.fromkeys(names, (np.inf, -np.inf))
    counts = {name: np.zeros(_BINS) for name in names}

    def widen(name: str, value: npt.NDArray[np.float32]) -> None:
        low, high = float(value.min()), float(value.max())
        if not np.isfinite((low, high)).all():
            raise OptimizationError(
                f"the detector's tensor {name!r} has values that are not finite"
            )
        ends[name] = min(ends[name][0], low), max(ends[name][1], high)

    def count(name: str, value: npt.NDArray[np.float32]) -> None:
        counts[name] += _count(value, *ends[name])

    try:
        session = ort.InferenceSession(
            tapped.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        with tqdm(total=2 * len(pixels), desc="calibrating", unit="image", disable=None) as bar:
            for take in (widen, count):
                for image in pixels:
                    values = session.run(names, {"images": image[None]})
                    for name, value in zip(names, values, strict=True):
                        take(name, value)
                    bar.update()
    except ORT_ERRORS as error:
        raise OptimizationError(f"the detector does not run: {error}") from error
    return {name: Histogram(counts[name], *ends[name]) for name in names}


def _count(values: npt.NDArray[np.float32], low: float, high: float) -> FloatArray:
    if high <= low:
        bins = np.zeros(values.size, np.int32)
    else:
        scaled = (values.ravel() - np.float32(low)) * np.float32(_BINS / (high - low))
        bins = np.clip(scaled.astype(np.int32), 0, _BINS - 1)
    return np.asarray(np.bincount(bins, minlength=_BINS), np.float64)


def _minmax(histogram: Histogram) -> Range:
    return histogram.low, histogram.high


def _percentile(histogram: Histogram) -> Range:
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    edges = np.linspace(histogram.low, histogram.high, _BINS + 1)
    first = int(np.searchsorted(share, _TAIL, side="right"))
    last = int(np.searchsorted(share, 1 - _TAIL))
    low, high = edges[first], edges[min(last + 1, _BINS)]
    return float(low), float(high)


def _candidates(histogram: Histogram) -> Iterable[Range]:
    """The whole range, and ever narrower ones: both ends shrink, the farther one first."""
    farthest = max(abs(histogram.low), abs(histogram.high))
    for limit in np.linspace(farthest, farthest / _STEPS, _STEPS):
        yield max(histogram.low, -limit), min(histogram.high, limit)


def _mse(histogram: Histogram) -> Range:
    centers = _centers(histogram)

    def error(limits: Range) -> float:
        low, high = min(limits[0], 0.0), max(limits[1], 0.0)
        step = (high - low) / (_LEVELS - 1)
        clipped = np.clip(centers, low, high)
        # Rounding errs by step^2 / 12 in the mean, over values that vary within a step.
        inside = (centers >= low) & (centers <= high)
        errors = np.where(inside, step**2 / 12, (centers - clipped) ** 2)
        return float((errors * histogram.counts).sum())

    return min(_candidates(histogram), key=error)


def _entropy(histogram: Histogram) -> Range:
    centers = _centers(histogram)

    def divergence(limits: Range) -> float:
        inside = (centers >= limits[0]) & (centers <= limits[1])
        counts = histogram.counts[inside]
        if counts.sum() == 0:
            return np.inf
        reference = counts.copy()  # what is clipped gathers in the outermost bins
        reference[0] += histogram.counts[centers < limits[0]].sum()
        reference[-1] += histogram.counts[centers > limits[1]].sum()
        # Each level's share is spread evenly over the bins of it that hold anything.
        level = np.arange(len(counts)) * _LEVELS // max(len(counts), _LEVELS)
        filled = counts > 0
        totals = np.bincount(level, counts, minlength=_LEVELS)
        bins = np.bincount(level, filled, minlength=_LEVELS)
        quantised = np.where(filled, totals[level] / np.maximum(bins[level], 1), 0)
        p, q = reference / reference.sum(), quantised / quantised.sum()
        positive = p > 0
        return float((p[positive] * np.log(p[positive] / np.maximum(q[positive], 1e-12))).sum())

    return min(_candidates(histogram), key=divergence)


def _centers(histogram: Histogram) -> FloatArray:
    edges = np.linspace(histogram.low, histogram.high, _BINS + 1)
    return np.asarray((edges[:-1] + edges[1:]) / 2)


METHODS: dict[str, Callable[[Histogram], Range]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}
