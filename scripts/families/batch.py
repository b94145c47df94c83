"""A dynamic batch for models that were exported with a fixed one.

What fixes a batch in a graph is mostly the shapes that Reshape and Resize are given. Shapes are
inferred for the batch that the file has and for one that it has not: a Reshape whose input grew
and whose output did not is given -1 where the batch is. That it then is the same model is not
argued but measured: `prove` runs both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from families.graph import PREFIX, Array, DetectorImportError
from families.pixels import constants_of
from families.raw import RawModel, image_noise, run

Shapes = dict[str, list[int]]

SMALL = 64  # elements of a tensor that may be a shape
WEIGHTS = (TensorProto.FLOAT, TensorProto.FLOAT16)
# Nodes with one output that compute sizes and indices.
SIZE_OPS = frozenset(
    ("Add", "Cast", "Concat", "Div", "Gather", "Mod", "Mul", "Shape", "Slice", "Squeeze", "Sub",
     "Unsqueeze")
)  # fmt: skip
GROWTH = 13  # a batch that no other dimension is likely to be a multiple of by chance
TOLERANCE = 1e-4  # of the greatest value of an output; batches are summed in another order


def make_dynamic(raw: RawModel) -> onnx.ModelProto:
    """A copy of the model that takes any number of images, as far as it could be made.

    Raises:
        DetectorImportError: A node cannot be changed so.
    """
    model = onnx.ModelProto()
    model.CopyFrom(raw.model)
    _set_batch(model, raw.image, "N")
    if raw.batch:
        _free(model, raw)
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    return model


def prove(raw: RawModel, model: onnx.ModelProto) -> float:
    """Run images in one batch and, by the original, alone; compare every output.

    Args:
        raw: The original.
        model: The same with a dynamic batch.

    Returns:
        The greatest difference, as a share of the output's greatest value.

    Raises:
        DetectorImportError: They differ; the message names the node that is to blame.
    """
    group = raw.batch or 1
    images = image_noise(raw, math.ceil(4 / group) * group, seed=1)
    difference = 0.0
    try:
        together = run(model, {raw.image: images})
    except DetectorImportError as error:
        raise DetectorImportError(
            f"the model has a batch of {group} in its graph that cannot be made dynamic: {error}"
        ) from error
    alone = run_grouped(raw.model, raw.image, images, group)
    for name, expected in alone.items():
        difference = max(difference, _difference(together[name], expected))
    if difference <= TOLERANCE:
        return difference
    raise DetectorImportError(
        f"the model has a batch of {group} in its graph that cannot be made dynamic: in a batch of"
        f" {len(images)} its outputs are others, from {_first_other(raw, model, images, group)} on;"
        " export it with a dynamic batch"
    )


def run_grouped(model: onnx.ModelProto, image: str, images: Array, group: int) -> dict[str, Array]:
    """Run images in groups of the size that a model takes; join the outputs."""
    starts = range(0, len(images), group)
    runs = [run(model, {image: images[start : start + group]}) for start in starts]
    # What does not depend on the image, such as anchors, has no batch and is the same each time.
    return {
        name: np.concatenate([each[name] for each in runs])
        if len(runs[0][name].shape) and len(runs[0][name]) == group
        else runs[0][name]
        for name in runs[0]
    }


def _difference(found: Array, expected: Array) -> float:
    if found.shape != expected.shape:
        # Constants of a batch of one broadcast.
        same = len(expected) > 0 and found.shape[1:] == expected.shape[1:] and len(found) == 1
        return 0.0 if same and (expected == found).all() else math.inf
    if not expected.size:
        return 0.0
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def _first_other(raw: RawModel, model: onnx.ModelProto, images: Array, group: int) -> str:
    """The first node of the graph whose values differ, with the values of all nodes at hand."""
    shown = [_showing_all(source) for source in (model, raw.model)]
    together = run(shown[0], {raw.image: images})
    alone = run_grouped(shown[1], raw.image, images, group)
    for node in model.graph.node:
        for name in node.output:
            both = name in alone and name in together
            if both and _difference(together[name], alone[name]) > TOLERANCE:
                return f"node {node.name or name!r} ({node.op_type})"
    return "a node that could not be told"


def _showing_all(model: onnx.ModelProto) -> onnx.ModelProto:
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    del shown.graph.output[:]
    for node in shown.graph.node:
        shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
    return shown


def _set_batch(model: onnx.ModelProto, image: str, batch: int | str) -> None:
    for info in model.graph.input:
        if info.name == image:
            dim = info.type.tensor_type.shape.dim[0]
            dim.Clear()
            if isinstance(batch, int):
                dim.dim_value = batch
            else:
                dim.dim_param = batch


def _free(model: onnx.ModelProto, raw: RawModel) -> None:
    """Rewrite what fixes the batch, from the input on, until nothing more changes."""
    values = run(_showing_all(raw.model), {raw.image: image_noise(raw, raw.batch)})
    fixed = {name: list(value.shape) for name, value in values.items()}
    fixed |= {item.name: list(item.dims) for item in model.graph.initializer}
    fixed[raw.image] = [raw.batch, *raw.image_shape]
    constants = constants_of(model) | _settled(model, raw.image, values)
    followed: dict[str, Array] = {}
    while True:
        grown = _inferred(model, raw.image, raw.batch * GROWTH, constants | followed)
        before, followed = followed, _followed(model, grown, constants)
        changed = {k: v.tobytes() for k, v in before.items()} != {
            k: v.tobytes() for k, v in followed.items()
        }
        for node in model.graph.node:
            if node.op_type == "Reshape":
                changed |= _free_reshape(model, node, fixed, grown, raw.batch)
            elif node.op_type == "Resize":
                changed |= _free_resize(model, node, fixed, constants | followed)
        if not changed:
            return


def _settled(model: onnx.ModelProto, image: str, values: dict[str, Array]) -> dict[str, Array]:
    """The small tensors that are computed, but not from the image: sizes and indices."""
    moving = {image}
    for node in model.graph.node:
        if moving.intersection(node.input):
            moving.update(node.output)
    return {
        name: value for name, value in values.items() if name not in moving and value.size <= SMALL
    }


def _followed(
    model: onnx.ModelProto, grown: Shapes, constants: dict[str, Array]
) -> dict[str, Array]:
    """What the graph computes from the shapes of the grown batch: sizes and indices."""
    opsets = {item.domain: item.version for item in model.opset_import}
    followed: dict[str, Array] = {}
    for node in model.graph.node:
        if node.op_type not in SIZE_OPS or node.domain or node.output[0] in constants:
            continue
        feeds: dict[str, Array] = {}
        for name in node.input:
            value = followed.get(name, constants.get(name))
            if node.op_type == "Shape" and name in grown:
                value = np.broadcast_to(np.int8(0), grown[name])  # of that shape, without memory
            if value is not None and (value.size <= SMALL or node.op_type == "Shape"):
                feeds[name] = value
        if len(feeds) == len(set(node.input)):
            (followed[node.output[0]],) = ReferenceEvaluator(node, opsets=opsets).run(None, feeds)
    return followed


def _inferred(model: onnx.ModelProto, image: str, batch: int, known: dict[str, Array]) -> Shapes:
    """The shapes of all tensors for a batch, as far as they can be told."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    _set_batch(light, image, batch)
    del light.graph.value_info[:]
    for output in light.graph.output:
        output.type.tensor_type.ClearField("shape")
    for item in list(light.graph.initializer):
        if item.data_type in WEIGHTS and math.prod(item.dims) > SMALL:
            # Weights are not looked at: declare them, and inference has less to copy.
            light.graph.input.append(
                helper.make_tensor_value_info(item.name, item.data_type, item.dims)
            )
            light.graph.initializer.remove(item)
    for node in list(light.graph.node):
        # Inference follows few operations on values: what is known need not be followed.
        if all(name in known for name in node.output):
            light.graph.node.remove(node)
            light.graph.initializer.extend(
                numpy_helper.from_array(known[name], name) for name in node.output
            )
    graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    return {
        info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        for info in (*graph.value_info, *graph.input, *graph.output)
        if info.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in info.type.tensor_type.shape.dim)
    }


def _free_reshape(
    model: onnx.ModelProto, node: onnx.NodeProto, fixed: Shapes, grown: Shapes, batch: int
) -> bool:
    """Give a Reshape -1 where the batch is, if its input grew and its output did not."""
    source, target = fixed.get(node.input[0]), fixed.get(node.output[0])
    now, then = grown.get(node.input[0]), grown.get(node.output[0])
    if not (source and target and now) or now == source:
        return False
    shape = batch_free_shape(source, now, target, batch)
    if shape is None:
        if then is not None and math.prod(then) == math.prod(now):
            return False  # it follows its input in a way of its own
        raise DetectorImportError(
            f"node {node.name or node.output[0]!r} (Reshape {source} to {target}) fixes the batch"
            f" of {batch} in a way that cannot be made dynamic: export with a dynamic batch"
        )
    if then == [
        size * GROWTH if new < 0 else size for size, new in zip(target, shape, strict=True)
    ]:
        return False
    name = f"{PREFIX}{node.output[0]}/shape"
    model.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), name))
    node.input[1] = name
    return True


def batch_free_shape(
    source: Sequence[int], grown: Sequence[int], target: Sequence[int], batch: int
) -> list[int] | None:
    """What a Reshape has to be given to work for any batch.

    The batch, alone or times something (heads of attention), is one dimension of the input, and
    lies behind a number of elements; it is the dimension of the output behind as many.

    Args:
        source: Shape of the input at the fixed batch.
        grown: Shape of the input at another.
        target: Shape of the output at the fixed batch.
        batch: The fixed batch.

    Returns:
        The output's shape with -1 for the dimension that has the batch, or None if there is no
        such dimension.
    """
    axes = [axis for axis, pair in enumerate(zip(source, grown, strict=True)) if pair[0] != pair[1]]
    if len(axes) != 1:
        return None
    before = math.prod(source[: axes[0]])
    for axis, size in enumerate(target):
        if math.prod(target[:axis]) == before and size % batch == 0:
            return [*target[:axis], -1, *target[axis + 1 :]]
    return None


def _free_resize(
    model: onnx.ModelProto, node: onnx.NodeProto, fixed: Shapes, constants: dict[str, Array]
) -> bool:
    """Give a Resize scales in place of sizes, which have the batch in them."""
    sizes = constants.get(node.input[3]) if len(node.input) > 3 else None
    source = fixed.get(node.input[0])
    if sizes is None or source is None or len(sizes) != len(source):
        return False
    name = f"{PREFIX}{node.output[0]}/scales"
    scales = sizes.astype(np.float32) / np.array(source, np.float32)
    model.graph.initializer.append(numpy_helper.from_array(scales, name))
    node.input[:] = [node.input[0], "", name]
    return True
