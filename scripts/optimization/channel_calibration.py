"""Which channels the rest of a network can do without, found on images.

What a layer reads is, over all pixels of some images, a set of vectors with a mean and a
covariance. A channel that is removed is replaced by its best linear prediction from those that
stay, which costs nothing at run time: it goes into the weights and the bias of the layer that read
it (a least-squares reconstruction as in He et al., Channel Pruning for Accelerating Very Deep
Neural Networks, 2017). The channel that goes first is the one whose removal then changes the
layer's output least (the Optimal Brain Surgeon's choice, Hassibi and Stork, 1993, on columns).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from tqdm import tqdm

from detserve.engines import ORT_ERRORS
from optimization.channel_groups import ChannelGraph, ChannelGroup, Mixer
from optimization.channel_labels import IntArray
from optimization.channel_selection import Chunk
from optimization.complexity import PruningError
from optimization.network import copy_model

__all__ = ["Moments", "activation_moments", "elimination", "reconstruct"]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]

_PIXELS = 512  # of one image that are looked at, at most
_WIDEST = 4096  # channels: the covariance is their square
_RIDGE = 1e-3  # of the mean variance: noise that predictions must not fit


@dataclass(frozen=True)
class Moments:
    """What a tensor's channels are like, over images and pixels.

    Attributes:
        mean: Float64 [C].
        covariance: Float64 [C, C], regularised, so that it can be inverted.
    """

    mean: FloatArray
    covariance: FloatArray

    def parts(self, count: int) -> list[Moments]:
        """Those of equal parts of the channels, as the groups of a convolution read them."""
        ranges = np.split(np.arange(len(self.mean)), count)
        return [Moments(self.mean[at], self.covariance[np.ix_(at, at)]) for at in ranges]


def activation_moments(
    model: onnx.ModelProto, tensors: Iterable[str], images: Array
) -> dict[str, Moments]:
    """Run a model on images and describe some of its tensors.

    Args:
        model: A model with one input.
        tensors: Names of tensors [N, C, ...].
        images: What the input takes, [N, ...]; they are run one by one.

    Raises:
        PruningError: The model does not run on them, or there are none.
    """
    if not len(images):
        raise PruningError("there are no images to calibrate with")
    names = list(dict.fromkeys(tensors))
    tapped = copy_model(model)
    del tapped.graph.output[:]
    tapped.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    sums = {name: _Sums() for name in names}
    try:
        session = ort.InferenceSession(
            tapped.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        (source,) = session.get_inputs()
        for index in tqdm(range(len(images)), "calibrating", unit="image", disable=None):
            values = session.run(None, {source.name: images[index : index + 1]})
            for sum_of, value in zip(sums.values(), values, strict=True):
                sum_of.add(value)
    except (*ORT_ERRORS, ValueError) as error:
        raise PruningError(f"the model does not run on the calibration images: {error}") from error
    return {name: sum_of.moments() for name, sum_of in sums.items()}


def elimination(
    group: ChannelGroup,
    graph: ChannelGraph,
    weights: dict[str, Array],
    moments: dict[str, Moments],
    sizes: Sequence[int],
) -> list[Chunk]:
    """Order a group's channels by how well the network does without.

    Args:
        group: The channels.
        graph: Where they are.
        weights: Initialisers by name.
        moments: Of every mixer's input.
        sizes: How many channels go at once, step by step.

    Returns:
        The least needed channels first. Costs are the changes of the reading layers' outputs, as
        shares of their variance.
    """
    readers = [
        reader
        for mixer in graph.mixers
        if np.isin(labels := graph.coupled(graph.read_by(mixer)), group.channels).any()
        for reader in _readers(mixer, labels, group, weights[mixer.weight], moments)
    ]
    alive, chunks = np.ones(len(group.channels), np.bool_), []
    for size in sizes:
        costs = np.where(alive, 0.0, np.inf)
        for reader in readers:
            costs += reader.costs(len(costs))
        chosen = np.argsort(costs, kind="stable")[:size]
        alive[chosen] = False
        cost = sum(reader.eliminate(chosen) for reader in readers)
        chunks.append(Chunk(group.channels[chosen], cost))
    return chunks


def reconstruct(
    mixer: Mixer, keep: npt.NDArray[np.bool_], weights: Array, moments: Moments
) -> tuple[Array, FloatArray]:
    """Let a layer's weights make up for the channels that it will not read any more.

    Args:
        mixer: The layer.
        keep: Bool [C], the channels that it, or each of its groups, goes on reading.
        weights: Its weights.
        moments: Of its input, before any channel is removed.

    Returns:
        The weights, those of removed channels zero, and what to add to the bias of each filter.
        Where a kernel reaches into zero padding the bias is too much; nothing better is constant.
    """
    axes, kernels, shifts = (mixer.input_axis, mixer.filter_axis), [], []
    parts = np.split(weights, mixer.groups, mixer.filter_axis)
    for part, seen in zip(parts, moments.parts(mixer.groups), strict=True):
        columns, covariance = _columns(mixer, part), seen.covariance
        prediction = np.linalg.solve(
            covariance[np.ix_(keep, keep)], covariance[np.ix_(keep, ~keep)]
        )
        offset = seen.mean[~keep] - seen.mean[keep] @ prediction
        fitted = np.zeros_like(columns)
        fitted[keep] = columns[keep] + np.tensordot(prediction, columns[~keep], 1)
        moved = fitted.reshape(np.moveaxis(part, axes, (0, 1)).shape)
        kernels.append(np.moveaxis(moved, (0, 1), axes))
        shifts.append(np.tensordot(offset, columns[~keep], 1).sum(axis=1))
    return (
        np.concatenate(kernels, mixer.filter_axis).astype(weights.dtype),
        np.concatenate(shifts),
    )


class _Sums:
    """Running sums over the pixels of one tensor."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._count, self._total, self._products = 0, np.zeros(1), np.zeros((1, 1))

    def add(self, values: Array) -> None:
        """Add some pixels of an activation [N, C, ...]."""
        pixels = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1).astype(np.float32)
        if len(pixels) > _WIDEST:
            raise PruningError(f"a layer reads {len(pixels)} channels, calibration takes {_WIDEST}")
        if pixels.shape[1] > _PIXELS:
            pixels = pixels[:, self._random.choice(pixels.shape[1], _PIXELS, replace=False)]
        self._count += pixels.shape[1]
        self._total = self._total + pixels.sum(axis=1, dtype=np.float64)
        self._products = self._products + pixels @ pixels.T

    def moments(self) -> Moments:
        """Mean and covariance of what was added."""
        mean = self._total / self._count
        covariance = self._products / self._count - np.outer(mean, mean)
        ridge = _RIDGE * float(np.trace(covariance)) / len(mean) + 1e-12
        return Moments(mean, covariance + ridge * np.eye(len(mean)))


class _Reader:
    """How one layer reads one group, while channels are removed."""

    def __init__(
        self,
        positions: IntArray,
        owners: IntArray,
        columns: FloatArray,
        moments: Moments,
        scale: float,
    ) -> None:
        """Begin with all channels.

        Args:
            positions: Where the group's channels lie in the layer's input.
            owners: Which channel of the group lies at each position.
            columns: Float64 [C, M], the layer's weights by channel of its input.
            moments: Of its input.
            scale: Weight of its changes.
        """
        self._positions, self._owners, self._columns = positions, owners, columns
        self._precision = np.linalg.inv(moments.covariance)
        variance = np.einsum("cm,cd,dm->", columns, moments.covariance, columns, optimize=True)
        self._scale = scale / max(float(variance), 1e-300)

    def costs(self, count: int) -> FloatArray:
        """Float64 [count]: what removing each channel of the group alone would change."""
        at = self._positions
        power = np.square(self._columns[at]).sum(axis=1)
        single = power / np.maximum(self._precision[at, at], 1e-300)
        return np.bincount(self._owners, single, count) * self._scale

    def eliminate(self, channels: IntArray) -> float:
        """Remove channels of the group for good; return what that changes."""
        at = self._positions[np.isin(self._owners, channels)]
        inverse = np.linalg.inv(self._precision[np.ix_(at, at)])
        across, removed = self._precision[:, at], self._columns[at]
        change = float(np.einsum("am,ab,bm->", removed, inverse, removed, optimize=True))
        self._columns = self._columns - across @ (inverse @ removed)
        self._precision = self._precision - across @ inverse @ across.T
        self._columns[at] = 0
        return change * self._scale


def _readers(
    mixer: Mixer,
    labels: IntArray,
    group: ChannelGroup,
    weights: Array,
    moments: dict[str, Moments],
) -> Iterator[_Reader]:
    """How a layer reads a group of channels, once for each group of its filters."""
    positions = np.flatnonzero(np.isin(labels, group.channels))
    place = {label: index for index, label in enumerate(group.channels.tolist())}
    owners = np.array([place[label] for label in labels[positions].tolist()], np.int64)
    parts = np.split(weights, mixer.groups, mixer.filter_axis)
    seen = moments[mixer.node.input[0]].parts(mixer.groups)
    for part, seen_part in zip(parts, seen, strict=True):
        columns = _columns(mixer, part)
        flat = columns.reshape(len(columns), -1)
        yield _Reader(positions, owners, flat, seen_part, 1 / mixer.groups)


def _columns(mixer: Mixer, weights: Array) -> FloatArray:
    """Weights as float64 [input channel, filter, position in the kernel]."""
    moved = np.moveaxis(weights, (mixer.input_axis, mixer.filter_axis), (0, 1))
    return moved.reshape(*moved.shape[:2], -1).astype(np.float64)
