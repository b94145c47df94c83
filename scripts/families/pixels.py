"""The way from uint8 pixels to what a model takes, as cheap as it can be made.

A first convolution can take on the order of the channels and the scale exactly, so those cost
nothing. The mean stays outside: the zeros that pad the image would no longer be zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from families.base import ZERO, Settings
from families.graph import Array, GraphBuilder
from families.raw import RawModel

INTERLEAVED = 3  # channels of a pixel


def add_pixels(graph: GraphBuilder, raw: RawModel, settings: Settings) -> None:
    """Put the nodes from `images` to the model's image before the nodes of the model.

    Args:
        graph: Nodes and constants of the model; its first convolution may be changed.
        raw: The model.
        settings: Order, mean and scale.
    """
    body, graph.nodes = graph.nodes, []
    conv = _first_convolution(graph, body, raw)
    if conv is None:
        _add_general(graph, raw, settings)
    else:
        _add_interleaved(graph, raw, settings, conv)
    graph.nodes += body


def _add_general(graph: GraphBuilder, raw: RawModel, settings: Settings) -> None:
    pixels = graph.cast("pixels", "images", TensorProto.FLOAT)
    if settings.order == "bgr":
        pixels = graph.add("Gather", "pixels/bgr", pixels, np.array([2, 1, 0]), axis=3)
    if any(settings.mean):
        pixels = graph.add("Sub", "pixels/centered", pixels, np.array(settings.mean, np.float32))
    if settings.std != (1, 1, 1):
        scale = 1 / np.array(settings.std)
        pixels = graph.add("Mul", "pixels/scaled", pixels, scale.astype(np.float32))
    if raw.layout == "NCHW":
        pixels = graph.add("Transpose", "pixels/nchw", pixels, perm=[0, 3, 1, 2])
    graph.nodes.append(helper.make_node("Cast", [pixels], [raw.image], to=raw.dtype))


def _add_interleaved(
    graph: GraphBuilder, raw: RawModel, settings: Settings, conv: onnx.NodeProto
) -> None:
    """Let the first convolution read the pixels as they lie in memory.

    A row of interleaved pixels is one channel of width 3W: the convolution reads it with a kernel,
    stride and pads three times as wide, and nothing is transposed to NCHW.
    """
    width, height = raw.size_wh
    mean = np.array(settings.mean)
    weight = graph.constants[conv.input[1]]  # [out, 3, kh, kw]
    scaled = weight / np.array(settings.std, np.float32).reshape(3, 1, 1)
    if settings.order == "bgr":
        scaled, mean = scaled[:, ::-1], mean[::-1]
    interleaved = scaled.transpose(0, 2, 3, 1).reshape(len(weight), 1, weight.shape[2], -1)
    conv.input[1] = graph.constant(
        f"{conv.input[1]}/interleaved", np.ascontiguousarray(interleaved)
    )
    for attribute in conv.attribute:
        if attribute.name in ("strides", "kernel_shape"):
            attribute.ints[1] *= INTERLEAVED
        elif attribute.name == "pads":
            attribute.ints[1] *= INTERLEAVED
            attribute.ints[3] *= INTERLEAVED

    pixels = graph.cast("pixels", "images", TensorProto.FLOAT)
    shape = np.array([0, 1, height, width * INTERLEAVED], np.int64)
    pixels = graph.add("Reshape", "pixels/rows", pixels, shape)
    if settings.mean != ZERO:
        # One number serves every channel where it can: then nothing has to be looked up.
        means = mean[:1] if len(set(settings.mean)) == 1 else np.tile(mean, width)
        pixels = graph.add("Sub", "pixels/centered", pixels, means.astype(np.float32))
    conv.input[0] = pixels


def _first_convolution(
    graph: GraphBuilder, body: list[onnx.NodeProto], raw: RawModel
) -> onnx.NodeProto | None:
    """The one convolution that reads the image, if it can read interleaved pixels."""
    if raw.layout != "NCHW" or raw.dtype != TensorProto.FLOAT:
        return None
    readers = [node for node in body if raw.image in node.input]
    conv = readers[0] if len(readers) == 1 else _without_focus(graph, body, raw)
    if conv is None or conv.op_type != "Conv" or conv.input[0] != raw.image:
        return None
    settings = _attributes(conv)
    plain = (
        settings.get("group", 1) == 1
        and list(settings.get("dilations", [1, 1])) == [1, 1]
        and settings.get("auto_pad", b"NOTSET") == b"NOTSET"
        and "strides" in settings
    )
    weight = graph.constants.get(conv.input[1])
    return conv if plain and weight is not None and weight.dtype == np.float32 else None


def _without_focus(
    graph: GraphBuilder, body: list[onnx.NodeProto], raw: RawModel
) -> onnx.NodeProto | None:
    """Replace space-to-depth and a convolution by the one convolution that they are.

    YOLOX and early YOLOv5 put each 2 x 2 pixels into twelve channels, by slicing, and convolve
    those (Focus). That is one convolution of the image with a kernel and a stride twice as large.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in body:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    offsets: dict[str, dict[int, int]] = {raw.image: {}}  # tensor -> axis -> first row or column
    behind, joints = [raw.image], []
    for name in behind:
        for node in readers.get(name, []):
            if node.op_type == "Concat":
                joints.append(node)
                continue
            taken = _every_second(graph, node)
            if taken is None or taken[0] in offsets[name]:
                return None
            offsets[node.output[0]] = offsets[name] | {taken[0]: taken[1]}
            behind.append(node.output[0])
    if not joints or any(joint is not joints[0] for joint in joints):
        return None
    convs = readers.get(joints[0].output[0], [])
    parts = [offsets[name] for name in joints[0].input]
    places = [(part.get(2), part.get(3)) for part in parts]
    if len(convs) != 1 or convs[0].op_type != "Conv" or sorted(map(str, places)) != FOCUS_PLACES:
        return None
    conv, settings = convs[0], _attributes(convs[0])
    weight = graph.constants.get(conv.input[1])
    if weight is None or settings.get("group", 1) != 1 or "pads" not in settings:
        return None
    if list(settings.get("dilations", [1, 1])) != [1, 1] or list(settings["strides"]) != [1, 1]:
        return None
    out, _, rows, columns = weight.shape
    whole = np.zeros((out, 3, 2 * rows, 2 * columns), weight.dtype)
    for index, (top, left) in enumerate(places):
        whole[:, :, top::2, left::2] = weight[:, 3 * index : 3 * index + 3]
    changed = {"kernel_shape": [2 * rows, 2 * columns], "strides": [2, 2]}
    changed["pads"] = [2 * pad for pad in settings["pads"]]
    merged = helper.make_node(
        "Conv", [raw.image, graph.constant(f"{conv.input[1]}/focus", whole), *conv.input[2:]],
        conv.output, name=conv.name, group=1, dilations=[1, 1], **changed,
    )  # fmt: skip
    body[body.index(conv)] = merged
    return merged


FOCUS_PLACES = sorted(str((top, left)) for top in (0, 1) for left in (0, 1))


def _every_second(graph: GraphBuilder, node: onnx.NodeProto) -> tuple[int, int] | None:
    """Axis and first index of a slice that takes every second row or column to the end."""
    if node.op_type != "Slice" or len(node.input) != 5:
        return None
    values = [graph.constants.get(name) for name in node.input[1:]]
    if any(value is None or value.size != 1 for value in values):
        return None
    start, stop, axis, step = (int(value.item()) for value in values if value is not None)
    return (
        (axis, start) if axis in (2, 3) and start in (0, 1) and step == 2 and stop > 2**15 else None
    )


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}


def as_model_takes(images: Array, raw: RawModel, settings: Settings) -> Array:
    """The same without a graph: uint8 [N, H, W, 3] to the raw model's image."""
    pixels = images[..., ::-1] if settings.order == "bgr" else images
    values = (pixels - np.array(settings.mean)) / np.array(settings.std)
    if raw.layout == "NCHW":
        values = values.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(values, helper.tensor_dtype_to_np_dtype(raw.dtype))


def constants_of(model: onnx.ModelProto) -> dict[str, Array]:
    """The initialisers and the values of Constant nodes, by name."""
    values = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return values
