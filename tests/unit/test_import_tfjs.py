"""TensorFlow.js to ONNX, on graphs of a few nodes and against plain NumPy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

import import_tfjs
from tfjs_format import TfjsImportError, UnsupportedNodeError
from tfjs_ops import same_padding

Array = npt.NDArray[Any]
Node = dict[str, Any]
RNG = np.random.default_rng(7)


def text(value: str) -> Node:
    return {"s": list(value.encode())}


def ints(*values: int) -> Node:
    return {"list": {"i": [str(value) for value in values], "s": []}}


def node(name: str, op: str, *inputs: str, **attributes: Any) -> Node:
    return {"name": name, "op": op, "input": list(inputs), "attr": {"T": {"type": 1}, **attributes}}


def conv(
    name: str, op: str, data: str, kernel: str, stride: int = 1, padding: str = "SAME"
) -> Node:
    return node(
        name, op, data, kernel,
        strides=ints(1, stride, stride, 1), dilations=ints(1, 1, 1, 1),
        padding=text(padding), data_format=text("NHWC"),
    )  # fmt: skip


def write_model(folder: Path, nodes: list[Node], weights: Mapping[str, Array]) -> Path:
    entries = [
        {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
        for name, array in weights.items()
    ]
    data = b"".join(array.tobytes() for array in weights.values())
    (folder / "shard1").write_bytes(data[: len(data) // 2])
    (folder / "shard2").write_bytes(data[len(data) // 2 :])
    model = {
        "modelTopology": {"node": nodes},
        "weightsManifest": [{"paths": ["shard1", "shard2"], "weights": entries}],
    }
    (folder / "model.json").write_text(json.dumps(model))
    return folder


def run(model: onnx.ModelProto, image_nhwc: Array) -> Array:
    session = ort.InferenceSession(model.SerializeToString())
    (output,) = session.run(None, {"image": image_nhwc.transpose(0, 3, 1, 2)})
    return np.asarray(output)


def cut(output: str, hwc: tuple[int, int, int]) -> import_tfjs.Cut:
    return import_tfjs.Cut("input", "image", hwc, {output: "output"})


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def convolve(image: Array, kernel: Array, stride: int, padding: str) -> Array:
    """Convolve one [H, W, C] image with a [kh, kw, C, O] kernel, by TensorFlow's definition."""
    kernel_h, kernel_w = kernel.shape[:2]
    if padding == "SAME":
        pads = []
        for size, extent in zip(image.shape[:2], (kernel_h, kernel_w), strict=True):
            out = int(np.ceil(size / stride))
            total = max((out - 1) * stride + extent - size, 0)
            pads.append((total // 2, total - total // 2))
        image = np.pad(image, [*pads, (0, 0)])
    out_h = (image.shape[0] - kernel_h) // stride + 1
    out_w = (image.shape[1] - kernel_w) // stride + 1
    result = np.zeros((out_h, out_w, kernel.shape[3]))
    for y in range(out_h):
        for x in range(out_w):
            top, left = y * stride, x * stride
            window = image[top : top + kernel_h, left : left + kernel_w]
            result[y, x] = np.tensordot(window, kernel, axes=3)
    return result


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [(300, 3, 2, (0, 1)), (75, 3, 2, (1, 1)), (150, 3, 1, (1, 1)), (8, 1, 2, (0, 0)),
     (7, 2, 1, (0, 1)), (10, 5, 2, (1, 2))],
)  # fmt: skip
def test_same_padding_puts_the_odd_pixel_after(
    size: int, kernel: int, stride: int, expected: tuple[int, int]
) -> None:
    assert same_padding(size, kernel, stride) == expected


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("hw", [(8, 7), (5, 6)])
def test_conv_matches_numpy(tmp_path: Path, hw: tuple[int, int], stride: int, padding: str) -> None:
    kernel = floats(3, 3, 2, 5)
    nodes = [conv("c", "Conv2D", "input", "k", stride, padding)]
    model = import_tfjs.import_graph(
        write_model(tmp_path, nodes, {"k": kernel}), cut("c", (*hw, 2))
    )
    image = floats(2, *hw, 2)
    expected = [convolve(single, kernel, stride, padding) for single in image]
    assert run(model, image) == pytest.approx(np.stack(expected).transpose(0, 3, 1, 2), abs=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_conv_matches_numpy(tmp_path: Path, stride: int) -> None:
    kernel = floats(3, 3, 4, 1)
    nodes = [conv("d", "DepthwiseConv2dNative", "input", "k", stride)]
    model = import_tfjs.import_graph(
        write_model(tmp_path, nodes, {"k": kernel}), cut("d", (8, 6, 4))
    )
    image = floats(1, 8, 6, 4)
    expected = [
        convolve(image[0, ..., c : c + 1], kernel[:, :, c : c + 1], stride, "SAME")[..., 0]
        for c in range(4)
    ]
    assert run(model, image)[0] == pytest.approx(np.stack(expected), abs=1e-5)
    assert [n.op_type for n in model.graph.node] == ["Conv", "Identity"]


def test_scale_bias_and_relu6_become_one_conv_and_clip(tmp_path: Path) -> None:
    weights = {"k": floats(3, 3, 3, 4), "scale": floats(4), "bias": floats(4) + 3}
    nodes = [
        conv("c", "Conv2D", "input", "k", 2),
        node("m", "Mul", "c", "scale"),
        node("b", "Add", "bias", "m"),  # constants come first or second
        node("r", "Relu6", "b"),
    ]
    model = import_tfjs.import_graph(write_model(tmp_path, nodes, weights), cut("r", (10, 10, 3)))
    assert [n.op_type for n in model.graph.node] == ["Conv", "Clip", "Identity"]
    image = floats(1, 10, 10, 3) * 3
    linear = convolve(image[0], weights["k"], 2, "SAME") * weights["scale"] + weights["bias"]
    expected = np.clip(linear, 0, 6).transpose(2, 0, 1)
    assert (expected.min(), expected.max()) == (0, 6)  # both ends are reached
    assert run(model, image)[0] == pytest.approx(expected, abs=1e-5)


def test_batch_norm_folds(tmp_path: Path) -> None:
    weights = {
        "k": floats(1, 1, 3, 4), "gamma": floats(4), "beta": floats(4), "mean": floats(4),
        "variance": np.abs(floats(4)) + 0.1,
    }  # fmt: skip
    norm = node(
        "n", "FusedBatchNorm", "c", "gamma", "beta", "mean", "variance",
        epsilon={"f": 0.001}, is_training={"b": False}, data_format=text("NHWC"),
    )  # fmt: skip
    nodes = [conv("c", "Conv2D", "input", "k"), norm]
    model = import_tfjs.import_graph(write_model(tmp_path, nodes, weights), cut("n", (4, 4, 3)))
    image = floats(1, 4, 4, 3)
    linear = image[0] @ weights["k"][0, 0]
    normal = (linear - weights["mean"]) / np.sqrt(weights["variance"] + 0.001)
    expected = normal * weights["gamma"] + weights["beta"]
    assert [n.op_type for n in model.graph.node] == ["Conv", "Identity"]
    assert run(model, image)[0] == pytest.approx(expected.transpose(2, 0, 1), abs=1e-5)


def test_bias_behind_a_residual_sum_folds_into_its_conv(tmp_path: Path) -> None:
    weights = {"k0": floats(1, 1, 3, 3), "k1": floats(1, 1, 3, 3), "bias": floats(3)}
    nodes = [
        conv("c0", "Conv2D", "input", "k0"),
        node("r", "Relu6", "c0"),
        conv("c1", "Conv2D", "r", "k1"),
        node("sum", "AddN", "c1", "r", N={"i": "2"}, _hint={"b": True}),
        node("out", "Add", "bias", "sum"),
    ]
    model = import_tfjs.import_graph(write_model(tmp_path, nodes, weights), cut("out", (4, 4, 3)))
    assert [n.op_type for n in model.graph.node] == ["Conv", "Clip", "Conv", "Add", "Identity"]
    image = floats(1, 4, 4, 3)
    skip = np.clip(image[0] @ weights["k0"][0, 0], 0, 6)
    expected = skip @ weights["k1"][0, 0] + skip + weights["bias"]
    assert run(model, image)[0] == pytest.approx(expected.transpose(2, 0, 1), abs=1e-5)


def test_heads_keep_the_batch_dynamic(tmp_path: Path) -> None:
    weights = {
        "k0": floats(1, 1, 3, 8), "k1": floats(3, 3, 3, 8),
        "zero": np.zeros(1, np.int32), "one": np.ones(1, np.int32),
        "all": np.array(-1, np.int32), "1": np.array(1, np.int32), "4": np.array(4, np.int32),
    }  # fmt: skip
    masks = {"shrink_axis_mask": {"i": "1"}, "begin_mask": {"i": "0"}, "end_mask": {"i": "0"}}
    nodes = [node("shape", "Shape", "input", out_type={"type": 3})]
    for level, stride in enumerate((1, 2)):
        nodes += [
            conv(f"c{level}", "Conv2D", "input", f"k{level}", stride),
            node(f"n{level}", "StridedSlice", "shape", "zero", "one", "one", **masks),
            node(f"s{level}", "Pack", f"n{level}", "all", "1", "4", axis={"i": "0"}),
            node(f"r{level}", "Reshape", f"c{level}", f"s{level}"),
        ]
    nodes += [
        node("cat", "ConcatV2", "r0", "r1", "1"),
        node("out", "Squeeze", "cat", squeeze_dims=ints(2)),
    ]
    model = import_tfjs.import_graph(write_model(tmp_path, nodes, weights), cut("out", (6, 4, 3)))
    image = floats(3, 6, 4, 3)
    output = run(model, image)
    expected = [
        np.concatenate([
            convolve(single, weights["k0"], 1, "SAME").reshape(-1, 4),
            convolve(single, weights["k1"], 2, "SAME").reshape(-1, 4),
        ])
        for single in image
    ]  # fmt: skip
    assert output.shape == (3, 2 * (24 + 6), 4)
    assert output == pytest.approx(np.stack(expected), abs=1e-5)
    assert run(model, image[:1]) == pytest.approx(output[:1], abs=1e-6)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (node("bad", "Softmax", "c"), "op not supported"),
        (node("bad", "Relu6", "c", alpha={"f": 1.0}), "attribute alpha=1.0"),
        (node("bad", "Mul", "c", "input"), "must be a constant"),
        (node("bad", "Add", "input", "k"), "cannot be folded"),
        (node("bad", "Relu6", "k"), "expects a feature map"),
        (node("bad", "Reshape", "c", "k"), "malformed"),
        (node("bad", "Conv2D", "c", "k"), "malformed"),
        (node("bad", "Relu6"), "malformed"),
        (node("bad", "AddN", "bad", "c"), "is part of a loop"),
        (node("bad", "AddN", "c", "c", "c"), "3 operands"),
        (conv("bad", "Conv2D", "c", "k", padding="EXPLICIT"), "padding EXPLICIT"),
        (
            {**conv("bad", "Conv2D", "c", "k"), "attr": {"dilations": ints(1, 2, 2, 1)}},
            r"dilations=\[1, 2, 2, 1\]",
        ),
        (
            {**conv("bad", "Conv2D", "c", "k"), "attr": {"data_format": text("NCHW")}},
            "data_format='NCHW'",
        ),
    ],
)
def test_what_is_not_known_is_an_error_that_names_the_node(
    tmp_path: Path, bad: Node, message: str
) -> None:
    nodes = [conv("c", "Conv2D", "input", "k"), bad]
    folder = write_model(tmp_path, nodes, {"k": floats(1, 1, 3, 3)})
    with pytest.raises(UnsupportedNodeError, match=message) as error:
        import_tfjs.import_graph(folder, cut("bad", (4, 4, 3)))
    assert error.value.node_name == "bad"
    assert "'bad'" in str(error.value)


def test_a_shared_conv_is_not_folded(tmp_path: Path) -> None:
    nodes = [
        conv("c", "Conv2D", "input", "k"),
        node("b", "Add", "c", "bias"),
        node("out", "Add", "b", "c"),
    ]
    folder = write_model(tmp_path, nodes, {"k": floats(1, 1, 3, 3), "bias": floats(3)})
    with pytest.raises(UnsupportedNodeError, match="cannot be folded"):
        import_tfjs.import_graph(folder, cut("out", (4, 4, 3)))


def test_missing_things_are_import_errors(tmp_path: Path) -> None:
    with pytest.raises(TfjsImportError, match="no GraphModel"):
        import_tfjs.import_graph(tmp_path, cut("c", (4, 4, 3)))
    folder = write_model(tmp_path, [node("r", "Relu6", "gone")], {})
    with pytest.raises(TfjsImportError, match="'gone'"):
        import_tfjs.import_graph(folder, cut("r", (4, 4, 3)))
    (folder / "shard2").unlink()
    with pytest.raises(TfjsImportError, match="cannot read a weight shard"):
        import_tfjs.import_graph(folder, cut("r", (4, 4, 3)))


def test_import_is_deterministic_and_its_constants_are_outputs(tmp_path: Path) -> None:
    weights = {"k": floats(3, 3, 3, 4), "priors": floats(1, 5, 4)}
    folder = write_model(tmp_path, [conv("c", "Conv2D", "input", "k", 2)], weights)
    where = import_tfjs.Cut("input", "image", (8, 8, 3), {"c": "output"}, {"priors": "anchors"})
    first, second = (import_tfjs.import_graph(folder, where) for _ in range(2))
    data = first.SerializeToString(deterministic=True)
    assert data == second.SerializeToString(deterministic=True)
    feed = {"image": np.zeros((1, 3, 8, 8), np.float32)}
    (anchors,) = ort.InferenceSession(data).run(["anchors"], feed)
    assert np.array_equal(anchors, weights["priors"])


def test_command_line_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert import_tfjs.main([str(tmp_path), "-o", str(tmp_path / "raw.onnx")]) == 1
    assert capsys.readouterr().err.startswith("error: no GraphModel")
