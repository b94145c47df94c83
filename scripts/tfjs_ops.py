"""Turn the ops of a TensorFlow.js graph into ONNX nodes.

One function an op. Values are tensors of the ONNX graph or, for weights and for what is computed
from them and from shapes, arrays. `CONVERTERS` lists what is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tfjs_format import Array, Node, TfjsImportError, UnsupportedNodeError, attributes


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's SAME padding (before, after) of one axis; the odd pixel goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


@dataclass(frozen=True)
class Tensor:
    """A tensor of the ONNX graph; `shape` is TensorFlow's, less the batch axis."""

    name: str
    shape: tuple[int, ...]
    nchw: bool  # True: the ONNX tensor is NCHW where TensorFlow's is NHWC


Value = Tensor | Array
_CONV_ATTRIBUTES = {"data_format": "NHWC", "dilations": [1, 1, 1, 1]}
_NORM_ATTRIBUTES = {"data_format": "NHWC", "is_training": False}
_SLICE_ATTRIBUTES = {
    "shrink_axis_mask": 1, "begin_mask": 0, "end_mask": 0, "ellipsis_mask": 0, "new_axis_mask": 0
}  # fmt: skip


class GraphImporter:
    """Walks a graph backwards from its outputs and writes ONNX nodes.

    Attributes:
        onnx_nodes: The ONNX nodes so far, in execution order.
        parameters: Constants of the ONNX graph. They stay float64 until they are written, so
            folding costs no accuracy.
    """

    def __init__(
        self,
        nodes: Mapping[str, Node],
        weights: Mapping[str, Array],
        inputs: Mapping[str, Tensor],
        outputs: Iterable[str],
    ) -> None:
        self.nodes, self.weights = nodes, weights
        self.onnx_nodes: list[onnx.NodeProto] = []
        self.parameters: dict[str, Array] = {}
        self.values: dict[str, Value] = dict(inputs)
        self.foldable: dict[str, str] = {}  # tensor name -> Conv whose bias reaches it unchanged
        self.uses = Counter(list(outputs))  # of a mapping, its keys
        for node in nodes.values():
            self.uses.update(node.get("input") or ())

    def value(self, name: str) -> Value:
        """Import the node of that name, and before it everything it needs."""
        pending, visited = [name], set()
        while pending:
            current = pending[-1]
            if current in self.weights:
                self.values.setdefault(current, self.weights[current])
            if current in self.values:
                pending.pop()
                continue
            if current not in self.nodes:
                raise TfjsImportError(f"there is no node {current!r}")
            node = self.nodes[current]
            if node["op"] not in CONVERTERS:
                raise UnsupportedNodeError(node, "op not supported")
            visited.add(current)
            operands = node.get("input") or ()
            missing = [operand for operand in operands if operand not in self.values]
            if visited.intersection(missing):
                raise UnsupportedNodeError(node, "is part of a loop")
            if missing:
                pending.extend(reversed(missing))
                continue
            self.values[current] = self._convert(node, [self.values[name] for name in operands])
        return self.values[name]

    def _convert(self, node: Node, operands: list[Value]) -> Value:
        try:
            return CONVERTERS[node["op"]](self, node, operands)
        except TfjsImportError:
            raise
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise UnsupportedNodeError(node, f"malformed: {error!r}") from error

    def emit(self, op: str, node: Node, inputs: list[str], suffix: str = "", **attrs: Any) -> str:
        """Append an ONNX node named after its TensorFlow node; return its output's name."""
        name: str = node["name"] + suffix
        self.onnx_nodes.append(helper.make_node(op, inputs, [name], name=name, **attrs))
        return name

    def constant(self, name: str, array: Array) -> str:
        """Add a constant of the ONNX graph and return its name."""
        self.parameters[name] = array
        return name


def _tensor(node: Node, value: Value, *, nchw: bool) -> Tensor:
    if not isinstance(value, Tensor) or (nchw and not value.nchw):
        raise UnsupportedNodeError(node, "expects a feature map" if nchw else "expects a tensor")
    return value


def _constant(node: Node, value: Value) -> Array:
    if isinstance(value, Tensor):
        raise UnsupportedNodeError(node, f"operand {value.name!r} must be a constant")
    return value


def _convolution(imp: GraphImporter, node: Node, operands: list[Value]) -> Value:
    attrs = attributes(node, {"padding", "strides"}, _CONV_ATTRIBUTES)
    data = _tensor(node, operands[0], nchw=True)
    kernel = _constant(node, operands[1]).astype(np.float64)  # [kh, kw, in, out or multiplier]
    height, width, channels = data.shape
    kernel_h, kernel_w, channels_in, channels_out = kernel.shape
    batch_stride, stride_h, stride_w, channel_stride = attrs["strides"]
    if (batch_stride, channel_stride) != (1, 1) or channels_in != channels:
        raise UnsupportedNodeError(node, f"strides {attrs['strides']}, kernel {kernel.shape}")
    groups = 1
    if node["op"] == "DepthwiseConv2dNative":
        groups, channels_out = channels, channels * channels_out
        kernel = kernel.reshape(kernel_h, kernel_w, 1, channels_out)
    if attrs["padding"] not in ("SAME", "VALID"):
        raise UnsupportedNodeError(node, f"padding {attrs['padding']}")
    top = bottom = left = right = 0
    if attrs["padding"] == "SAME":
        top, bottom = same_padding(height, kernel_h, stride_h)
        left, right = same_padding(width, kernel_w, stride_w)
    name = node["name"]
    weight = imp.constant(f"{name}/weight", kernel.transpose(3, 2, 0, 1))
    bias = imp.constant(f"{name}/bias", np.zeros(channels_out))
    output = imp.emit(
        "Conv", node, [data.name, weight, bias],
        kernel_shape=[kernel_h, kernel_w], strides=[stride_h, stride_w],
        pads=[top, left, bottom, right], group=groups,
    )  # fmt: skip
    imp.foldable[output] = output
    out_h = (height + top + bottom - kernel_h) // stride_h + 1
    out_w = (width + left + right - kernel_w) // stride_w + 1
    return Tensor(output, (out_h, out_w, channels_out), nchw=True)


def _fold(
    imp: GraphImporter, node: Node, data: Value, producer: str, scale: Array | float, offset: Array
) -> Value:
    """Fold `x * scale + offset`, both per channel, into the convolution that makes `x`."""
    tensor = _tensor(node, data, nchw=True)
    conv = imp.foldable.get(tensor.name)
    if conv is None or imp.uses[producer] != 1:
        raise UnsupportedNodeError(node, f"cannot be folded into a convolution ({producer!r})")
    channels = tensor.shape[-1]
    scale64 = np.broadcast_to(np.asarray(scale, np.float64), (channels,))
    offset64 = np.broadcast_to(np.asarray(offset, np.float64), (channels,))
    if conv != tensor.name and np.any(scale64 != 1.0):
        raise UnsupportedNodeError(node, "scales a sum")
    weight, bias = f"{conv}/weight", f"{conv}/bias"
    imp.parameters[weight] = imp.parameters[weight] * scale64.reshape(-1, 1, 1, 1)
    imp.parameters[bias] = imp.parameters[bias] * scale64 + offset64
    return tensor


def _mul(imp: GraphImporter, node: Node, operands: list[Value]) -> Value:
    attributes(node, set(), {})
    first, second = (0, 1) if isinstance(operands[0], Tensor) else (1, 0)
    scale = _constant(node, operands[second])
    return _fold(imp, node, operands[first], node["input"][first], scale, np.zeros(1))


def _add(imp: GraphImporter, node: Node, operands: list[Value]) -> Value:
    attributes(node, set(), {"data_format": "NHWC"})
    if len(operands) != 2:
        raise UnsupportedNodeError(node, f"{len(operands)} operands")
    first, second = (0, 1) if isinstance(operands[0], Tensor) else (1, 0)
    if not isinstance(operands[second], Tensor):
        offset = _constant(node, operands[second])
        return _fold(imp, node, operands[first], node["input"][first], 1.0, offset)
    left, right = (_tensor(node, operand, nchw=True) for operand in operands)
    if left.shape != right.shape:
        raise UnsupportedNodeError(node, f"shapes {left.shape} and {right.shape}")
    output = imp.emit("Add", node, [left.name, right.name])
    for operand, producer in zip((left, right), node["input"], strict=True):
        if imp.foldable.get(operand.name) == operand.name and imp.uses[producer] == 1:
            imp.foldable[output] = operand.name  # a bias behind the sum goes into this Conv
            break
    return Tensor(output, left.shape, nchw=True)


def _batch_norm(imp: GraphImporter, node: Node, operands: list[Value]) -> Value:
    epsilon = attributes(node, {"epsilon"}, _NORM_ATTRIBUTES)["epsilon"]
    gamma, beta, mean, variance = (
        _constant(node, operand).astype(np.float64) for operand in operands[1:]
    )
    scale = gamma / np.sqrt(variance + epsilon)
    return _fold(imp, node, operands[0], node["input"][0], scale, beta - mean * scale)


def _relu6(imp: GraphImporter, node: Node, operands: list[Value]) -> Value:
    attributes(node, set(), {})
    data = _tensor(node, operands[0], nchw=True)
    low = imp.constant("relu6/min", np.array(0.0))
    high = imp.constant("relu6/max", np.array(6.0))
    return Tensor(imp.emit("Clip", node, [data.name, low, high]), data.shape, nchw=True)


def _concat(imp: GraphImporter, node: Node, operands: list[Value]) -> Value:
    attributes(node, set(), {})
    axis = int(_constant(node, operands[-1]))
    parts = [_tensor(node, operand, nchw=False) for operand in operands[:-1]]
    if axis < 1 or any(part.nchw for part in parts):
        raise UnsupportedNodeError(node, f"axis {axis}, or a feature map")
    shape = list(parts[0].shape)
    shape[axis - 1] = sum(part.shape[axis - 1] for part in parts)
    return Tensor(imp.emit("Concat", node, [part.name for part in parts], axis=axis),
                   tuple(shape), nchw=False)  # fmt: skip


def _squeeze(imp: GraphImporter, node: Node, operands: list[Value]) -> Value:
    axes = attributes(node, {"squeeze_dims"}, {})["squeeze_dims"]
    data = _tensor(node, operands[0], nchw=False)
    if data.nchw or not axes or any(axis < 1 or data.shape[axis - 1] != 1 for axis in axes):
        raise UnsupportedNodeError(node, f"axes {axes} of {data.shape}")
    shape = tuple(size for axis, size in enumerate(data.shape, 1) if axis not in axes)
    axes_name = imp.constant(f"{node['name']}/axes", np.array(axes, np.int64))
    return Tensor(imp.emit("Squeeze", node, [data.name, axes_name]), shape, nchw=False)


# Shapes are computed while importing, with 0 for the batch: in ONNX's Reshape a 0 copies that
# dimension, so the batch stays dynamic.
def _shape(_imp: GraphImporter, node: Node, operands: list[Value]) -> Value:
    attributes(node, set(), {})
    return np.array([0, *_tensor(node, operands[0], nchw=False).shape], np.int64)


def _strided_slice(_imp: GraphImporter, node: Node, operands: list[Value]) -> Value:
    attributes(node, set(), _SLICE_ATTRIBUTES)
    vector, begin, end, step = (_constant(node, operand) for operand in operands)
    if vector.ndim != 1 or begin.size != 1 or int(end[0] - begin[0]) != 1 or int(step[0]) != 1:
        raise UnsupportedNodeError(node, "only takes one element of a shape")
    return np.asarray(vector[int(begin[0])])


def _pack(_imp: GraphImporter, node: Node, operands: list[Value]) -> Value:
    attributes(node, set(), {"axis": 0})
    return np.stack([_constant(node, operand) for operand in operands])


def _reshape(imp: GraphImporter, node: Node, operands: list[Value]) -> Value:
    attributes(node, set(), {})
    data = _tensor(node, operands[0], nchw=False)
    target = [int(size) for size in _constant(node, operands[1])]
    count = int(np.prod(data.shape))
    known = int(np.prod([size for size in target[1:] if size != -1]))
    shape = tuple(count // known if size == -1 else size for size in target[1:])
    if target[0] != 0 or target.count(-1) > 1 or int(np.prod(shape)) != count:
        raise UnsupportedNodeError(node, f"reshapes {data.shape} to {target}")
    name = data.name
    if data.nchw:
        name = imp.emit("Transpose", node, [name], "/nhwc", perm=[0, 2, 3, 1])
    target_name = imp.constant(f"{node['name']}/shape", np.array(target, np.int64))
    return Tensor(imp.emit("Reshape", node, [name, target_name]), shape, nchw=False)


CONVERTERS: dict[str, Callable[[GraphImporter, Node, list[Value]], Value]] = {
    "Add": _add,
    "AddN": _add,
    "BiasAdd": _add,
    "ConcatV2": _concat,
    "Conv2D": _convolution,
    "DepthwiseConv2dNative": _convolution,
    "FusedBatchNorm": _batch_norm,
    "Mul": _mul,
    "Pack": _pack,
    "Relu6": _relu6,
    "Reshape": _reshape,
    "Shape": _shape,
    "Squeeze": _squeeze,
    "StridedSlice": _strided_slice,
}
