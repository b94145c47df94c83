"""Which channels of a network stand or fall together.

Every channel of every tensor gets a label. Operators that keep channels apart hand labels on,
those that add tensors up make two labels one, and those that are not understood freeze what they
read. What is one label in the end is removed as one: a filter of each convolution that writes it,
a column of each that reads it, and its entry in every vector between (the dependency graph of
Fang et al., DepGraph: Towards Any Structural Pruning, 2023, on single channels, so that Concat,
Split and Slice need no bookkeeping of offsets).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from optimization.channel_labels import IntArray, Labels
from optimization.channel_rules import RULES, Mixer
from optimization.complexity import Dims, attribute, tensor_shapes

__all__ = ["ChannelGraph", "ChannelGroup", "Mixer", "reads"]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that the same layers write, any of which can be removed.

    Attributes:
        channels: Labels, one for each set of coupled channels.
        producers: Names of the weights whose filters write them, and the axis of the filters.
    """

    channels: IntArray
    producers: tuple[tuple[str, int], ...]


class ChannelGraph:
    """The labels of all channels of a model without `Constant` nodes.

    Attributes:
        axes: (Initialiser, axis) to the label of each entry along that axis.
        mixers: The layers that read the channels, and whose weights have to follow them.
        producers: Those of `axes` along which filters lie.
        parts: Labels of the pieces that Split and Slice cut; something must be left of each.
        known: Tensor name to the labels of its channels, of those that were looked at.
        labels: Which labels are coupled.
        constants: Initialisers by name.
        shapes: Tensor name to its dimensions.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        """Label a model's channels."""
        self.axes: dict[tuple[str, int], IntArray] = {}
        self.mixers: list[Mixer] = []
        self.shapes: dict[str, Dims] = tensor_shapes(model)
        self.constants = {item.name: item for item in model.graph.initializer}
        self.known: dict[str, IntArray] = {}
        self.labels = Labels()
        self.parts: list[IntArray] = []
        self.producers: set[tuple[str, int]] = set()
        self._pinned = {info.name for info in model.graph.output}
        for node in model.graph.node:
            rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
            if rule is None or not rule(self, node):
                self._pinned.update(reads(node))
        for name in self._pinned - set(self.constants):
            if (labels := self.channels(name)) is not None:
                self.labels.freeze(labels)
        for (name, _), labels in self.axes.items():
            if name in self._pinned:
                self.labels.freeze(labels)

    def channels(self, name: str) -> IntArray | None:
        """Labels along axis 1 of a tensor, before coupling; None if it has no such fixed axis."""
        if name not in self.known:
            dims = self.shapes.get(name, ())
            if len(dims) < 2 or not isinstance(dims[1], int):
                return None
            if name in self.constants:
                self._pinned.add(name)  # read as an activation, it cannot shrink as a weight
            self.known[name] = self.labels.fresh(dims[1], frozen=True)
        return self.known[name]

    def coupled(self, labels: IntArray) -> IntArray:
        """One label for all that are coupled, instead of each of them."""
        return self.labels.sets(labels)

    def constant(self, node: onnx.NodeProto, index: int) -> list[int | float] | None:
        """Elements of a constant input; None if it is absent or computed."""
        if index >= len(node.input) or node.input[index] not in self.constants:
            return None
        elements: list[int | float] = (
            numpy_helper.to_array(self.constants[node.input[index]]).reshape(-1).tolist()
        )
        return elements

    def axes_of(self, node: onnx.NodeProto, index: int) -> list[int] | None:
        """Axes of a node's input, given as attribute or constant input, counted from the front.

        None if they are not given.
        """
        axes = attribute(node, "axes", None) or self.constant(node, index)
        rank = self.rank(node.output[0] if node.op_type == "Unsqueeze" else node.input[0])
        return [int(axis) % rank for axis in axes] if axes and rank else None

    def rank(self, name: str) -> int:
        """Number of a tensor's dimensions; 0 if it is not known."""
        return len(self.shapes.get(name, ()))

    def read_by(self, mixer: Mixer) -> IntArray:
        """Labels of the channels that a layer, or each group of its filters, reads."""
        return self.axes[mixer.weight, mixer.input_axis]

    def groups(self) -> list[ChannelGroup]:
        """All channels that can be removed, grouped by the layers and slices they lie in."""
        places: defaultdict[int, dict[int, None]] = defaultdict(dict)
        for place, labels in enumerate([*self.axes.values(), *self.parts]):
            for label in self.coupled(labels).tolist():
                places[label][place] = None
        groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for label, lies_in in places.items():
            if not self.labels.frozen(label):
                groups[tuple(lies_in)].append(label)
        keys = list(self.axes)
        return [
            ChannelGroup(
                np.array(labels, np.int64),
                tuple(keys[i] for i in lies_in if i < len(keys) and keys[i] in self.producers),
            )
            for lies_in, labels in groups.items()
        ]

    def claim(self, constant: str, axis: int, labels: IntArray) -> None:
        """Say what an axis of a constant counts; one used twice couples both uses."""
        self.labels.couple(self.axes.setdefault((constant, axis), labels), labels)


def reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, also from within its subgraphs."""
    names = set(node.input) - {""}
    for item in node.attribute:
        for graph in [item.g, *item.graphs]:
            names.update(*(reads(inner) for inner in graph.node))
    return names
