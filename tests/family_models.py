"""Detectors as they are exported, small and random, with the outputs of any family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]

FEATURES = 6


def raw_model(
    outputs: Mapping[str, Array],
    *,
    size_wh: tuple[int, int] = (64, 64),
    batch: int | str = "N",
    layout: str = "NCHW",
    dtype: int = TensorProto.FLOAT,
    first: str = "conv",
    opset: int = 17,
    spread: float = 1.0,
    constant: tuple[str, ...] = (),
    names: tuple[str, ...] | None = None,
) -> onnx.ModelProto:
    """A model whose outputs are given arrays plus what an image adds to them.

    Args:
        outputs: Names, and the arrays [A, D] of one image without what it adds.
        size_wh: Of the image.
        batch: A number for a fixed batch, with Reshapes that have it in them.
        layout: Of the image.
        dtype: ONNX element type of image and outputs.
        first: `conv`; `focus` (space-to-depth before it); `add` (nothing can be folded into).
        opset: 11 or newer.
        spread: How much an image adds, roughly.
        constant: Outputs that images do not change, such as anchors.
        names: Names of the classes, written into the file as Ultralytics does.
    """
    rng = np.random.default_rng(0)
    kind = helper.tensor_dtype_to_np_dtype(dtype if dtype != TensorProto.UINT8 else 1)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {}

    def add(op: str, name: str, *inputs: str | Array, **attributes: Any) -> str:
        values = []
        for index, item in enumerate(inputs):
            values.append(item if isinstance(item, str) else f"{name}.{index}")
            if not isinstance(item, str):
                constants[values[-1]] = item
        nodes.append(helper.make_node(op, values, [name], name=f"node_{name}", **attributes))
        return name

    width, height = size_wh
    x = "images"  # the very name that the contract gives to another tensor
    if dtype == TensorProto.UINT8:
        x = add("Cast", "float", x, to=TensorProto.FLOAT)
    if layout == "NHWC":
        x = add("Transpose", "nchw", x, perm=[0, 3, 1, 2])
    channels = 3
    if first == "add":
        x = add("Add", "shifted", x, np.array(1, kind))
    elif first == "focus":
        parts = []
        for left in (0, 1):
            for top in (0, 1):
                rows = add("Slice", f"rows{top}{left}", x, *map(_one, (top, 2**31 - 1, 2, 2)))
                place = map(_one, (left, 2**31 - 1, 3, 2))
                parts.append(add("Slice", f"part{top}{left}", rows, *place))
        x, channels = add("Concat", "focus", *parts, axis=1), 12
    weight = (rng.standard_normal((FEATURES, channels, 3, 3)) / 8).astype(kind)
    stride = 1 if first == "focus" else 2
    x = add(
        "Conv", "conv", x, weight, np.zeros(FEATURES, kind), strides=[stride, stride],
        pads=[1, 1, 1, 1], kernel_shape=[3, 3],
    )  # fmt: skip
    x = add("GlobalAveragePool", "pool", add("Tanh", "tanh", x))
    leading = batch if isinstance(batch, int) else -1
    x = add("Reshape", "features", x, np.array([leading, FEATURES], np.int64))
    for name, array in outputs.items():
        base = array.astype(kind)[None]
        if name in constant:
            add("Identity", name, base)
            continue
        mixed = (rng.standard_normal((FEATURES, array.size)) * spread).astype(kind)
        rows = add("MatMul", f"{name}.flat", x, mixed)
        shape = np.array([leading, *array.shape], np.int64)
        add("Add", name, add("Reshape", f"{name}.rows", rows, shape), base)

    element = {np.dtype(np.float16): TensorProto.FLOAT16}.get(np.dtype(kind), TensorProto.FLOAT)
    image = [batch, 3, height, width] if layout == "NCHW" else [batch, height, width, 3]
    graph = helper.make_graph(
        nodes, "raw",
        [helper.make_tensor_value_info("images", dtype, image)],
        [helper.make_tensor_value_info(name, element, [None] * 3) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if names is not None:
        helper.set_model_props(model, {"names": str(dict(enumerate(names)))})
    return model


def _one(value: int) -> Array:
    return np.array([value], np.int64)


def noise_images(count: int, size_wh: tuple[int, int] = (64, 64), seed: int = 0) -> Array:
    """uint8 [N, H, W, 3]."""
    shape = (count, size_wh[1], size_wh[0], 3)
    images = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    for index, image in enumerate(images):  # of different brightness and colour
        image[:] = image * (0.3 + 0.7 * index / count) * np.roll([1, 0.6, 0.3], index)
    return images


def run(model: onnx.ModelProto, image: str, data: Array) -> dict[str, Array]:
    """All outputs of a model."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {image: data}), strict=True))


def best_pairs(boxes_xyxy: Array, scores: Array, count: int = 300) -> Array:
    """Candidates of one image by brute force: every (row, class) pair, sorted.

    Args:
        boxes_xyxy: [A, 4].
        scores: [A, C].
        count: How many.

    Returns:
        [count, 6], zero where there are no more pairs.
    """
    order = np.argsort(-scores, axis=None, kind="stable")[:count]
    rows, classes = np.divmod(order, scores.shape[1])
    found = np.column_stack([boxes_xyxy[rows], scores[rows, classes], classes])
    return np.concatenate([found, np.zeros((count - len(found), 6))])


def corners(cxcywh: Array) -> Array:
    """Centres and sizes to x1 y1 x2 y2."""
    center, half = cxcywh[..., :2], cxcywh[..., 2:4] / 2
    return np.concatenate([center - half, center + half], axis=-1)


def sigmoid(logits: Array) -> Array:
    """The logistic function."""
    return np.asarray(1 / (1 + np.exp(-logits.astype(np.float64))))


def assert_same_rows(
    found: Array, expected: Array, *, pixels: float = 1e-3, score: float = 1e-4
) -> None:
    """Every expected row is there, and scores agree in order.

    Rows of equal scores may change places, and those that tie with the last be others: a row is
    looked up, and rows within the tolerance of the last score need not be there.
    """
    assert found.shape == expected.shape
    assert np.abs(found[:, 4] - expected[:, 4]).max() <= score
    last = expected[-1, 4]
    sure = expected[(expected[:, 4] > last + score) | (last == 0)]
    allowed = np.array([pixels] * 4 + [score, 0])
    near = (np.abs(found[None] - sure[:, None]) <= allowed).all(axis=2)
    missing = np.flatnonzero(~near.any(axis=1))
    assert not len(missing), f"{len(missing)} rows are missing, such as {sure[missing[0]]}"
