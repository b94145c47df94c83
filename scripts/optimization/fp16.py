"""Float16 weights and arithmetic, for strongly typed TensorRT networks."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from contract import DetectorInfo
from optimization.errors import OptimizationError
from optimization.network import Array, Network, copy_model, replace_input, sort_nodes

__all__ = ["to_float16"]

# Inputs that ONNX keeps in float32: what they say is no data.
_FLOAT_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a detector's network to float16, up to its raw predictions.

    What decodes them stays in float32: the corner of a box at 640 px and the
    rank of a score need more than 11 bits. A CPU gains nothing by float16: ONNX Runtime computes
    in float32 and casts around every operator.

    Args:
        model: A float32 detector of the contract.

    Returns:
        A new model with the same tensors and metadata.

    Raises:
        OptimizationError: The model is quantised, has no float32 convolutions, or cannot be
            followed from tensor to tensor.
    """
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise OptimizationError("an int8 detector cannot be float16 as well: choose one of them")
    if not Network(model).convolutions():
        raise OptimizationError("the detector has no float32 convolutions to convert")
    try:
        half = onnx.shape_inference.infer_shapes(copy_model(model), strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise OptimizationError(f"the detector's graph is inconsistent: {error}") from error
    network, graph = Network(half), half.graph
    floats = {
        info.name
        for info in (*graph.value_info, *graph.output)
        if info.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    body = network.body()
    for node in network.nodes:
        if node.output[0] in body:
            _convert(node, network, graph)
    for node in network.nodes:
        if node.output[0] not in body:
            continue
        for name in floats.intersection(node.output):
            later = [r for r in network.consumers.get(name, []) if r.output[0] not in body]
            if later:
                wide = f"{name}/fp32"
                graph.node.append(
                    helper.make_node("Cast", [name], [wide], name=wide, to=TensorProto.FLOAT)
                )
                for reader in later:
                    replace_input(reader, name, wide)
    del graph.value_info[:]  # of the float32 graph
    used = {name for node in graph.node for name in node.input}
    kept = {item.name: item for item in graph.initializer if item.name in used}
    tensors = [TensorProto.FromString(item.SerializeToString()) for item in kept.values()]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    sort_nodes(graph)
    DetectorInfo.of(model).write_to(half)
    return half


def _convert(node: onnx.NodeProto, network: Network, graph: onnx.GraphProto) -> None:
    """Let a node work in float16; what it is given by other nodes already is."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        elif attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_half(numpy_helper.to_array(attribute.t), attribute.t.name))
    for index, name in enumerate(node.input):
        if name in network.producers or index in _FLOAT_INPUTS.get(node.op_type, ()):
            continue
        array = network.constant(name)
        if array is not None and array.dtype == np.float32:
            node.input[index] = f"{name}/fp16"  # others may read it in float32
            graph.initializer.append(_half(array, node.input[index]))


def _half(array: Array, name: str) -> TensorProto:
    largest = np.finfo(np.float16).max
    return numpy_helper.from_array(np.clip(array, -largest, largest).astype(np.float16), name)
