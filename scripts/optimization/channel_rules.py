"""How each operator hands channels on: one rule for each, which labels the operator's outputs.

A rule returns False where it does not understand how the operator is used; what that reads is then
left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx

from optimization.channel_labels import IntArray
from optimization.complexity import attribute

if TYPE_CHECKING:
    from optimization.channel_groups import ChannelGraph

__all__ = ["RULES", "Mixer"]

Rule = Callable[["ChannelGraph", onnx.NodeProto], bool]

_UNARY = {
    "Abs", "AveragePool", "Cast", "Ceil", "Celu", "Clip", "Dropout", "Elu", "Erf", "Exp", "Floor",
    "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity",
    "LeakyRelu", "LpPool", "MaxPool", "Mish", "Neg", "Relu", "Round", "Selu", "Sigmoid", "Softplus",
    "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
}  # fmt: skip
_ELEMENTWISE = {"Add", "Div", "Max", "Mean", "Min", "Mul", "PRelu", "Pow", "Sub", "Sum"}
_SPATIAL = {"ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Mixer:
    """A layer whose every output depends on all channels of its input, or of a group of them.

    Attributes:
        node: The Conv or Gemm.
        weight: Name of its weights.
        input_axis: Their axis along the input's channels.
        filter_axis: Their axis along the output's channels.
        groups: Groups of a grouped convolution, which read equal parts of the input.
    """

    node: onnx.NodeProto
    weight: str
    input_axis: int
    filter_axis: int
    groups: int = 1


def _convolution(graph: ChannelGraph, node: onnx.NodeProto) -> bool:
    labels = graph.channels(node.input[0])
    if labels is None or not all(name in graph.constants for name in node.input[1:] if name):
        return False
    weight, groups = node.input[1], attribute(node, "group", 1)
    filters, per_group = graph.constants[weight].dims[:2]
    if groups == 1:
        graph.claim(weight, 1, labels)
        graph.mixers.append(Mixer(node, weight, 1, 0))
        out = graph.labels.fresh(filters)
    elif per_group == 1:  # depthwise
        out = np.repeat(labels, filters // groups)
    else:
        # Groups stay equal in size: the same channel of each of them goes.
        for columns in labels.reshape(groups, -1)[1:]:
            graph.labels.couple(labels[:per_group], columns)
        graph.claim(weight, 1, labels[:per_group])
        graph.mixers.append(Mixer(node, weight, 1, 0, groups))
        out = graph.labels.fresh(filters)
        for rows in out.reshape(groups, -1)[1:]:
            graph.labels.couple(out[: filters // groups], rows)
    graph.claim(weight, 0, out)
    graph.producers.add((weight, 0))
    for bias in node.input[2:]:
        if bias:
            graph.claim(bias, 0, out)
    graph.known[node.output[0]] = out
    return True


def _gemm(graph: ChannelGraph, node: onnx.NodeProto) -> bool:
    labels, constants = graph.channels(node.input[0]), node.input[1:]
    if labels is None or attribute(node, "transA", 0):
        return False
    if attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1:
        return False
    if not all(name in graph.constants for name in constants):
        return False
    input_axis = attribute(node, "transB", 0)
    weight, filter_axis = constants[0], 1 - input_axis
    out = graph.labels.fresh(graph.constants[weight].dims[filter_axis])
    graph.claim(weight, input_axis, labels)
    graph.claim(weight, filter_axis, out)
    for bias in constants[1:]:
        if math.prod(graph.constants[bias].dims) > 1:
            graph.claim(bias, len(graph.constants[bias].dims) - 1, out)
    graph.producers.add((weight, filter_axis))
    graph.mixers.append(Mixer(node, weight, input_axis, filter_axis))
    graph.known[node.output[0]] = out
    return True


def _normalization(graph: ChannelGraph, node: onnx.NodeProto) -> bool:
    labels = graph.channels(node.input[0])
    if labels is None or not all(name in graph.constants for name in node.input[1:]):
        return False
    for name in node.input[1:]:
        graph.claim(name, 0, labels)
    return _same(graph, node)


def _same(graph: ChannelGraph, node: onnx.NodeProto) -> bool:
    labels = graph.channels(node.input[0])
    if labels is None or sum(map(bool, node.output)) > 1:
        return False
    graph.known[node.output[0]] = labels
    return True


def _elementwise(graph: ChannelGraph, node: onnx.NodeProto) -> bool:
    rank = graph.rank(node.output[0])
    operands: list[IntArray] = []
    vectors: list[tuple[str, int]] = []
    for name in node.input:
        dims = graph.shapes.get(name)
        if dims is None:
            return False
        axis = len(dims) - rank + 1  # of the channels, in an operand of fewer dimensions
        if name in graph.constants:
            if axis >= 0 and dims[axis] != 1:
                vectors.append((name, axis))
            continue
        labels = graph.channels(name)
        if axis != 1 or labels is None:
            return False
        if len(labels) > 1:
            operands.append(labels)
        else:
            graph.labels.freeze(labels)  # spread over all channels, or the only one
    if not operands:
        return False
    for labels in operands[1:]:
        graph.labels.couple(operands[0], labels)
    for name, axis in vectors:
        graph.claim(name, axis, operands[0])
    graph.known[node.output[0]] = operands[0]
    return True


def _spatial(graph: ChannelGraph, node: onnx.NodeProto) -> bool:
    axes = graph.axes_of(node, 1)
    return axes is not None and min(axes) > 1 and _same(graph, node)


def _flatten(graph: ChannelGraph, node: onnx.NodeProto) -> bool:
    labels, spatial = graph.channels(node.input[0]), graph.shapes.get(node.input[0], ())[2:]
    sizes = [size for size in spatial if isinstance(size, int)]
    if labels is None or attribute(node, "axis", 1) != 1 or len(sizes) != len(spatial):
        return False
    graph.known[node.output[0]] = np.repeat(labels, math.prod(sizes))
    return True


def _pad(graph: ChannelGraph, node: onnx.NodeProto) -> bool:
    pads = attribute(node, "pads", None) or graph.constant(node, 1)
    if pads is None or (len(node.input) > 3 and node.input[3]):
        return False
    return not (pads[1] or pads[len(pads) // 2 + 1]) and _same(graph, node)


def _resize(graph: ChannelGraph, node: onnx.NodeProto) -> bool:
    scales, sizes = graph.constant(node, 2), graph.constant(node, 3)
    labels = graph.channels(node.input[0])
    if attribute(node, "axes", None) or labels is None:
        return False
    keeps = scales[1] == 1 if scales else bool(sizes) and (sizes or [0, 0])[1] == len(labels)
    return keeps and _same(graph, node)


def _concat(graph: ChannelGraph, node: onnx.NodeProto) -> bool:
    parts = [graph.channels(name) for name in node.input]
    known = [part for part in parts if part is not None]
    rank = graph.rank(node.input[0])
    if len(known) < len(parts) or not rank:
        return False
    if attribute(node, "axis", 0) % rank == 1:
        graph.known[node.output[0]] = np.concatenate(known)
        return True
    for part in known[1:]:
        graph.labels.couple(known[0], part)
    return _same(graph, node)


def _split(graph: ChannelGraph, node: onnx.NodeProto) -> bool:
    labels, rank = graph.channels(node.input[0]), graph.rank(node.input[0])
    if labels is None:
        return False
    parts = [labels] * len(node.output)
    if attribute(node, "axis", 0) % rank == 1:
        dims = [graph.shapes.get(name, (None, None))[1] for name in node.output]
        sizes = [size for size in dims if isinstance(size, int)]
        if len(sizes) != len(dims) or sum(sizes) != len(labels):
            return False
        parts = np.split(labels, np.cumsum(sizes)[:-1])
        graph.parts.extend(parts)
    graph.known.update(zip(node.output, parts, strict=True))
    return True


def _slice(graph: ChannelGraph, node: onnx.NodeProto) -> bool:
    labels = graph.channels(node.input[0])
    starts, ends = graph.constant(node, 1), graph.constant(node, 2)
    if labels is None or starts is None or ends is None:
        return False
    axes = graph.axes_of(node, 3) or list(range(len(starts)))
    if 1 not in axes:
        return _same(graph, node)
    at, steps = axes.index(1), graph.constant(node, 4)
    if steps and steps[at] != 1:
        return False
    part = labels[int(starts[at]) : int(ends[at])]
    graph.parts.append(part)
    graph.known[node.output[0]] = part
    return True


RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, _same),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_SPATIAL, _spatial),
    "BatchNormalization": _normalization,
    "Concat": _concat,
    "Conv": _convolution,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "InstanceNormalization": _normalization,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
}
