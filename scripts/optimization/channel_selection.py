"""Choosing the channels to remove: in which order, and how many of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from optimization.channel_groups import ChannelGraph, ChannelGroup
from optimization.channel_labels import IntArray
from optimization.complexity import WEIGHTED, PruningError, layer_macs

__all__ = ["Chunk", "by_magnitude", "cheapest", "chunk_sizes"]

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]

_MOST = 0.75  # of a group's channels that may go: no layer becomes a needle's eye


@dataclass(frozen=True)
class Chunk:
    """Channels that are removed together.

    Attributes:
        channels: Their labels.
        cost: What the network loses; of one scale for all groups.
    """

    channels: IntArray
    cost: float


def chunk_sizes(count: int, multiple: int) -> list[int]:
    """How many channels to remove at once so that a multiple stays after each step.

    Args:
        count: Channels of the group.
        multiple: Of which a number has to stay, at least one.
    """
    first = count % multiple or multiple
    most = min(int(_MOST * count), count - multiple)
    return [first] + [multiple] * ((most - first) // multiple) if first <= most else []


def by_magnitude(
    group: ChannelGroup, graph: ChannelGraph, weights: dict[str, Array], sizes: Sequence[int]
) -> list[Chunk]:
    """Order a group's channels by the L1 norm of the filters that write them.

    Li et al., Pruning Filters for Efficient ConvNets, 2017. Norms of different layers say nothing
    of each other, so a chunk costs the share of the group that has gone with it: all groups lose
    the same share.
    """
    place = {label: index for index, label in enumerate(group.channels.tolist())}
    norms = np.zeros(len(place))
    for name, axis in group.producers:
        filters = np.moveaxis(weights[name], axis, 0).astype(np.float64)
        sums = np.abs(filters).reshape(len(filters), -1).sum(axis=1)
        for label, norm in zip(graph.coupled(graph.axes[name, axis]).tolist(), sums, strict=True):
            if label in place:
                norms[place[label]] += norm / max(sums.mean(), 1e-30)
    ordered, ends = group.channels[np.argsort(norms, kind="stable")], np.cumsum(sizes)
    return [
        Chunk(ordered[end - size : end], size * end / len(place))
        for end, size in zip(ends.tolist(), sizes, strict=True)
    ]


def cheapest(
    model: onnx.ModelProto,
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
    chunks: Sequence[Sequence[Chunk]],
    fraction: float,
    *,
    per_mac: bool,
) -> IntArray:
    """Choose chunks until the network computes less by a fraction.

    Args:
        model: The model before anything is removed.
        graph: Where its channels are.
        groups: What can be removed.
        chunks: For each group, in the order in which they have to go.
        fraction: Share of the network's multiplications to remove.
        per_mac: Whether cost for what a chunk saves decides, or cost for its channels.

    Returns:
        The labels to remove.

    Raises:
        PruningError: All chunks together are less than the fraction.
    """
    work = _Work(model, graph, groups)
    target, taken = (1 - fraction) * work.total, [0] * len(groups)
    removed: list[IntArray] = []
    while work.macs() > target:
        best, lowest = -1, np.inf
        savings = work.savings()
        for index, (queue, next_one) in enumerate(zip(chunks, taken, strict=True)):
            if next_one < len(queue):
                chunk = queue[next_one]
                benefit = len(chunk.channels) * (savings[index] if per_mac else 1.0)
                if (price := chunk.cost / max(benefit, 1e-30)) < lowest:
                    best, lowest = index, price
        if best < 0:
            raise PruningError(
                f"at most {1 - work.macs() / work.total:.0%} of the multiplications can be removed"
                f" with whole channels, not {fraction:.0%}"
            )
        chunk = chunks[best][taken[best]]
        taken[best] += 1
        work.remove(best, len(chunk.channels))
        removed.append(chunk.channels)
    return np.concatenate(removed)


class _Work:
    """The multiplications of a network while channels are removed."""

    def __init__(
        self, model: onnx.ModelProto, graph: ChannelGraph, groups: Sequence[ChannelGroup]
    ) -> None:
        nodes = [node for node in model.graph.node if node.op_type in WEIGHTED]
        macs = np.array([layer_macs(node, graph.shapes) for node in nodes], np.float64)
        self.total = float(macs.sum())
        # For each layer, how many entries its weights have along the filters' and the inputs'
        # axis, and how many of those one channel of each group takes.
        self._entries = np.ones((2, len(nodes)))
        self._share = np.zeros((len(groups), 2, len(nodes)))
        for at, node in enumerate(nodes):
            for axis in (0, 1):
                labels = graph.axes.get((node.input[1], axis))
                if labels is not None:
                    self._entries[axis, at] = len(labels)
                    sets = graph.coupled(labels)
                    for index, group in enumerate(groups):
                        lying = np.isin(sets, group.channels).sum()
                        self._share[index, axis, at] = lying / len(group.channels)
        self._rate = macs / self._entries.prod(axis=0)

    def macs(self) -> float:
        """Multiplications that are left."""
        return float((self._rate * self._entries.prod(axis=0)).sum())

    def savings(self) -> FloatArray:
        """Float64 [groups]: what removing one channel of each group saves."""
        slopes = self._rate * self._entries[::-1]
        savings: FloatArray = np.einsum("gal,al->g", self._share, slopes)
        return savings

    def remove(self, group: int, channels: int) -> None:
        """Remove some channels of a group."""
        self._entries -= channels * self._share[group]
