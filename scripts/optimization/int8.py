"""Static INT8: QuantizeLinear and DequantizeLinear pairs around what each runtime computes in int8.

The scheme is Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, 2018: affine activations with one scale a tensor, symmetric
weights with one scale an output channel, int32 sums. Three forms, for the runtimes fuse different
patterns:

- `onnxruntime`: uint8 activations and int8 weights, which AVX512-VNNI multiplies as they are. Its
  kernels end in int8, so every tensor between them is quantised, and what joins two of them (Add,
  Concat, SiLU's Sigmoid and Mul, ...) is computed in int8 as well.
- `openvino`: the same types, quantised at the convolutions' inputs only: it fuses activations into
  the convolutions and computes them in float.
- `tensorrt`: symmetric int8 for both and a float bias, as its strongly typed networks demand; at
  the inputs only, too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper, version_converter

from optimization.calibration import Range
from optimization.errors import OptimizationError
from optimization.network import Network, copy_model, replace_input
from optimization.placement import Placement, place

__all__ = ["FORMS", "Form", "prepare", "quantize"]

Array = npt.NDArray[Any]

_OPSET = 13  # the first with one scale a channel


@dataclass(frozen=True, kw_only=True)
class Form:
    """What one runtime computes in int8.

    Attributes:
        symmetric: Whether activations are int8 around 0; else uint8 with an offset.
        results: Whether the results of int8 nodes are int8 too, and the nodes that join them.
        quantize_bias: Whether the bias is stored as int32.
    """

    symmetric: bool = False
    results: bool = False
    quantize_bias: bool = False


FORMS = {
    "onnxruntime": Form(results=True, quantize_bias=True),
    "openvino": Form(),
    "tensorrt": Form(symmetric=True),
}


@dataclass(frozen=True)
class _Scale:
    step: np.float32
    zero: Array  # uint8 or int8 []

    @classmethod
    def of(cls, limits: Range, symmetric: bool) -> _Scale:
        low, high = limits
        if symmetric:
            return cls(np.float32(max(-low, high, 1e-8) / 127), np.array(0, np.int8))
        step = np.float32(max(high - low, 1e-8) / 255)
        return cls(step, np.array(np.clip(np.round(-low / step), 0, 255), np.uint8))

    @property
    def limits(self) -> Range:
        """What can be represented."""
        info, zero = np.iinfo(self.zero.dtype), int(self.zero)
        return float(self.step * (info.min - zero)), float(self.step * (info.max - zero))


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 detector in a form that can be quantised.

    Raises:
        OptimizationError: It is quantised already, is not float32, or has no convolutions.
    """
    if any(node.op_type in ("QuantizeLinear", "QLinearConv") for node in model.graph.node):
        raise OptimizationError("the detector is quantised already: give its float32 file")
    if model.opset_import[0].version < _OPSET:
        model = version_converter.convert_version(model, _OPSET)
    if not Network(model).convolutions():
        raise OptimizationError(
            "the detector has no convolutions with constant float32 weights: there is nothing"
            " to quantise (a float16 file cannot be: give the float32 one)"
        )
    return model


def quantize(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    target: str,
    float_layers: Collection[str] = (),
) -> onnx.ModelProto:
    """Put a detector's convolutions into int8.

    Args:
        model: A float32 detector, from `prepare`.
        ranges: Tensor to its range, for at least the tensors of `place`.
        target: Key of `FORMS`.
        float_layers: Convolutions, by their output tensors, that stay in float.

    Returns:
        A new model.
    """
    form = FORMS[target]
    quantised = copy_model(model)
    return _Quantizer(quantised, place(quantised, form.results, float_layers), ranges, form).run()


class _Quantizer:
    def __init__(
        self,
        model: onnx.ModelProto,
        placement: Placement,
        ranges: Mapping[str, Range],
        form: Form,
    ) -> None:
        self._network = Network(model)
        self._placement = placement
        self._form = form
        self._before: dict[str, list[onnx.NodeProto]] = {}  # by the first output of what follows
        self._after: dict[str, list[onnx.NodeProto]] = {}
        self._constants: dict[str, Array] = {}
        self._sources: dict[str, str] = {}  # a tensor that came back, to the one that was quantised
        self._scales = {
            name: _Scale.of(ranges[placement.same_as.get(name, name)], form.symmetric)
            for name in placement.tensors
        }

    def run(self) -> onnx.ModelProto:
        network, graph = self._network, self._network.model.graph
        for name in self._placement.tensors:
            self._add_pair(name)
        for conv in network.convolutions():
            if conv.output[0] in self._placement.nodes:
                self._quantize_parameters(conv)
            elif self._form.results:
                self._protect(conv)
        if self._form.results:
            self._drop_activations()
        nodes = [
            node
            for old in network.nodes
            for node in (
                *self._before.get(old.output[0], ()),
                old,
                *(pair for name in old.output for pair in self._after.get(name, ())),
            )
        ]
        for name in self._placement.tensors:
            if name not in network.producers:  # the graph's own input
                nodes[:0] = self._after[name]
        del graph.node[:]
        graph.node.extend(nodes)
        self._finish(graph)
        return network.model

    def _constant(self, name: str, value: Array) -> str:
        self._constants[name] = value
        return name

    def _add_pair(self, name: str) -> None:
        """Quantise a tensor and let its readers read what comes back."""
        scale = self._scales[name]
        step = self._constant(f"{name}/qdq/scale", np.array(scale.step))
        zero = self._constant(f"{name}/qdq/zero", scale.zero)
        code, value = f"{name}/qdq/code", f"{name}/qdq/value"
        self._sources[value] = name
        self._after[name] = [
            helper.make_node(
                "QuantizeLinear", [name, step, zero], [code], name=f"{name}/qdq/quantize"
            ),
            helper.make_node(
                "DequantizeLinear", [code, step, zero], [value], name=f"{name}/qdq/dequantize"
            ),
        ]
        for reader in self._network.consumers.get(name, []):
            # All of them: a kernel that ends in int8 leaves nothing else to read, and one that
            # ends in both is slow.
            replace_input(reader, name, value)

    def _quantize_parameters(self, conv: onnx.NodeProto) -> None:
        name = conv.output[0]
        source = self._sources[conv.input[0]]
        weight = self._network.constant(conv.input[1])
        assert weight is not None  # `Network.convolutions`
        peaks = np.abs(weight).reshape(len(weight), -1).max(axis=1)
        steps = np.where(peaks > 0, peaks / 127, 1.0)
        bias = None
        if len(conv.input) > 2 and conv.input[2] and self._form.quantize_bias:
            bias = self._network.constant(conv.input[2])
            assert bias is not None
            input_step = float(self._scales[source].step)
            # A channel of tiny weights must not push its bias out of int32.
            steps = np.maximum(steps, np.abs(bias) / input_step / (2**31 - 2**8))
        steps = steps.astype(np.float32)
        codes = np.round(weight / steps.reshape(-1, *[1] * (weight.ndim - 1)))
        codes = np.clip(codes, -127, 127).astype(np.int8)
        conv.input[1] = self._dequantized(f"{name}/qdq/weight", codes, steps, name)
        if bias is not None:
            bias_steps = (steps * np.float32(input_step)).astype(np.float32)
            bias_codes = np.round(bias.astype(np.float64) / bias_steps).astype(np.int32)
            conv.input[2] = self._dequantized(f"{name}/qdq/bias", bias_codes, bias_steps, name)

    def _dequantized(self, name: str, codes: Array, steps: Array, owner: str) -> str:
        inputs = [
            self._constant(f"{name}/int", codes),
            self._constant(f"{name}/scale", steps),
            self._constant(f"{name}/zero", np.zeros(len(steps), codes.dtype)),
        ]
        value = f"{name}/float"
        self._before.setdefault(owner, []).append(
            helper.make_node("DequantizeLinear", inputs, [value], name=name, axis=0)
        )
        return value

    def _protect(self, conv: onnx.NodeProto) -> None:
        """Keep ONNX Runtime from quantising a convolution that is to stay in float.

        Between a DequantizeLinear and a QuantizeLinear it would, with one scale for all of the
        weights (its WeightBiasQuantization); but only after one scale for all of the input.
        """
        source = self._sources.get(conv.input[0])
        if source is None:
            return
        weight = self._network.constant(conv.input[1])
        assert weight is not None
        group = next((a.i for a in conv.attribute if a.name == "group"), 1)
        channels, scale, name = weight.shape[1] * group, self._scales[source], conv.output[0]
        inputs = [
            f"{source}/qdq/code",
            self._constant(f"{name}/qdq/input/scale", np.full(channels, scale.step)),
            self._constant(f"{name}/qdq/input/zero", np.full(channels, scale.zero)),
        ]
        conv.input[0] = f"{name}/qdq/input/float"
        self._before.setdefault(name, []).append(
            helper.make_node(
                "DequantizeLinear", inputs, [conv.input[0]], name=f"{name}/qdq/input", axis=1
            )
        )

    def _drop_activations(self) -> None:
        """Remove the Clip and Relu nodes that saturation does the work of."""
        for name, source in self._placement.activations.items():
            node = self._network.producers[name]
            floor, ceiling = self._bounds(node)
            low, high = self._scales[name].limits
            slack = 1e-6 * (high - low)
            if low >= floor - slack and high <= ceiling + slack:
                self._network.nodes = [other for other in self._network.nodes if other is not node]
                self._network.producers[source].output[0] = name
                self._before[name] = self._before.pop(source, [])

    def _bounds(self, node: onnx.NodeProto) -> Range:
        """What a Clip or Relu cuts off; nothing of a Clip whose bounds are computed."""
        if node.op_type == "Relu":
            return 0.0, np.inf
        bounds = [-np.inf, np.inf]
        for index, name in enumerate(node.input[1:]):
            if name:
                value = self._network.constant(name)
                # A bound that is not known could be anything: the node stays.
                bounds[index] = (np.inf, -np.inf)[index] if value is None else float(value)
        return bounds[0], bounds[1]

    def _finish(self, graph: onnx.GraphProto) -> None:
        del graph.value_info[:]  # of the float graph
        graph.initializer.extend(
            numpy_helper.from_array(array, name) for name, array in self._constants.items()
        )
        used = {name for node in graph.node for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        live = {name for node in graph.node for name in node.input}
        live |= {output.name for output in graph.output}
        nodes = [node for node in graph.node if any(name in live for name in node.output)]
        del graph.node[:]
        graph.node.extend(nodes)
