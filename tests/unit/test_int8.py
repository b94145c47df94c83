"""Calibration, the three forms of int8, and the layers that stay in float."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from contract import DetectorInfo
from optimization import OptimizationError, calibration
from optimization.calibration import Histogram, collect, load_images
from optimization.int8 import FORMS, prepare, quantize
from optimization.network import Network, sort_nodes
from optimization.placement import place
from optimization.sensitivity import LayerNoise, fewest_float_layers, rank_layers
from optimization.simulation import session
from tests.images import encode

Array = npt.NDArray[Any]
SIZE = 16
METHODS = sorted(calibration.METHODS)


def network(wide: bool = False) -> onnx.ModelProto:
    """A small network with what the forms treat apart: Clip, residual, SiLU, Concat, pooling.

    `wide` makes one layer hard to quantise: a channel that it reads is a thousand times the others.
    """
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
        "mean": np.array(127.5, np.float32),
    }

    def add(op: str, name: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def conv(name: str, source: str, shape: tuple[int, ...], **attributes: Any) -> str:
        weight = rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5
        if wide and name == "depthwise":
            weight[0] *= 1000
        if wide and name == "narrow":
            weight[:, 0] /= 1000
        constants[f"{name}.w"] = weight.astype(np.float32)
        constants[f"{name}.b"] = (rng.standard_normal(shape[0]) * 0.1).astype(np.float32)
        return add("Conv", name, source, f"{name}.w", f"{name}.b", **attributes)

    pixels = add("Cast", "pixels", "images", to=TensorProto.FLOAT)
    centred = add("Sub", "centred", pixels, "mean")
    scaled = add("Div", "scaled", centred, "mean")
    image = add("Transpose", "image", scaled, perm=[0, 3, 1, 2])
    stem = add("Clip", "stem6", conv("stem", image, (8, 3, 3, 3), pads=[1] * 4), "zero", "six")
    deep = conv("depthwise", stem, (8, 1, 3, 3), pads=[1] * 4, group=8)
    narrow = conv("narrow", deep, (8, 8, 1, 1))
    joined = add("Add", "joined", narrow, stem)
    silu = conv("silu", joined, (8, 8, 1, 1))
    active = add("Mul", "silu/out", silu, add("Sigmoid", "silu/gate", silu))
    pooled = add(
        "MaxPool", "pooled", active, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]
    )
    both = add("Concat", "both", active, pooled, axis=1)
    head = conv("head", both, (12, 16, 3, 3), strides=[1, 1])  # 12 x 14 x 14 = 392 x 6
    rows = add("Reshape", "rows", add("Transpose", "nhwc", head, perm=[0, 2, 3, 1]), "as_rows")
    constants["as_rows"] = np.array([0, -1, 6], np.int64)
    constants["first"], constants["last"] = np.array([0]), np.array([300])
    constants["axis"] = np.array([1])
    add("Slice", "candidates", rows, "first", "last", "axis")
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIZE, SIZE, 3])],
        [helper.make_tensor_value_info("candidates", TensorProto.FLOAT, ["N", 300, 6])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    DetectorInfo(input_size_wh=(SIZE, SIZE), resize="stretch").write_to(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def images(count: int = 6) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


def ranges_of(model: onnx.ModelProto, target: str, method: str = "minmax") -> dict[str, Any]:
    tensors = place(model, FORMS[target].results).tensors
    return {n: h.range(method) for n, h in collect(model, tensors, images()).items()}


def relative_error(model: onnx.ModelProto, other: onnx.ModelProto) -> float:
    (wanted,) = session(model).run(None, {"images": images()})
    (found,) = session(other).run(None, {"images": images()})
    return float(np.mean((found - wanted) ** 2) / np.var(wanted))


def fused(model: onnx.ModelProto, tmp_path: Path) -> Counter[str]:
    """The operators that ONNX Runtime really runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)


@pytest.mark.parametrize("target", sorted(FORMS))
def test_every_form_stays_near_the_float_network(target: str) -> None:
    model = network()
    quantised = quantize(model, ranges_of(model, target), target)
    onnx.checker.check_model(quantised, full_check=True)
    assert 0 < relative_error(model, quantised) < 2e-3
    weights = [t for t in quantised.graph.initializer if t.name.endswith("/weight/int")]
    assert len(weights) == 5
    assert {t.data_type for t in weights} == {TensorProto.INT8}


def test_onnx_runtime_computes_all_in_int8(tmp_path: Path) -> None:
    model = network()
    found = fused(quantize(model, ranges_of(model, "onnxruntime"), "onnxruntime"), tmp_path)
    assert found["QLinearConv"] == 5
    assert found["QLinearAdd"] == found["QLinearMul"] == found["QLinearSigmoid"] == 1
    assert found["QLinearConcat"] == 1
    assert found["Conv"] == found["Clip"] == 0
    assert found["QuantizeLinear"] == 1  # the image


def test_onnx_runtime_leaves_a_lone_float_layer_in_float(tmp_path: Path) -> None:
    model = network()
    quantised = quantize(model, ranges_of(model, "onnxruntime"), "onnxruntime", {"depthwise"})
    assert fused(quantised, tmp_path)["Conv"] == 1
    assert fused(quantised, tmp_path)["QLinearConv"] == 4


def test_tensorrt_form_is_symmetric_with_a_float_bias() -> None:
    model = network()
    quantised = quantize(model, ranges_of(model, "tensorrt"), "tensorrt")
    index = Network(quantised)
    pairs = [n for n in index.nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 5
    for node in pairs:
        zero = index.constant(node.input[2])
        assert zero is not None
        assert zero.dtype == np.int8
        assert not zero.any()
    for conv in (node for node in index.nodes if node.op_type == "Conv"):
        assert index.constant(conv.input[2]) is not None  # the float bias as it was
        assert [index.producers[name].op_type for name in conv.input[:2]] == [
            "DequantizeLinear"
        ] * 2
    assert sum(node.op_type == "Clip" for node in index.nodes) == 1


def test_clip_stays_where_saturation_does_not_do_its_work() -> None:
    model = network()
    ranges = ranges_of(model, "onnxruntime")
    quantised = quantize(model, ranges | {"stem6": (0.0, 7.0)}, "onnxruntime")
    assert [n.op_type for n in quantised.graph.node].count("Clip") == 1
    quantised = quantize(model, ranges | {"stem6": (0.0, 6.0)}, "onnxruntime")
    assert [n.op_type for n in quantised.graph.node].count("Clip") == 0


def test_a_big_bias_of_a_channel_of_tiny_weights_fits_int32() -> None:
    model = network()
    for tensor in model.graph.initializer:
        if tensor.name in ("head.w", "head.b"):
            array = numpy_helper.to_array(tensor).copy()
            array[0] = 1e-9 if tensor.name == "head.w" else 50
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    quantised = quantize(model, ranges_of(model, "onnxruntime"), "onnxruntime")
    (wanted,) = session(model).run(None, {"images": images(1)})
    (found,) = session(quantised).run(None, {"images": images(1)})
    assert np.abs(found - wanted).max() < 0.5


def test_quantised_or_convolution_free_models_are_refused() -> None:
    model = network()
    quantised = quantize(model, ranges_of(model, "openvino"), "openvino")
    with pytest.raises(OptimizationError, match="quantised already"):
        prepare(quantised)
    bare = network()
    del bare.graph.node[:]
    with pytest.raises(OptimizationError, match="no convolutions"):
        prepare(bare)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_range_that_holds_zero(method: str) -> None:
    counts = np.zeros(2048)
    counts[100:200] = 1000
    counts[2047] = 1  # an outlier
    low, high = Histogram(counts, 0.5, 20.0).range(method)
    assert low == 0
    assert 2.3 < high <= 20.0


def test_mse_and_percentile_cut_an_outlier_off_and_minmax_does_not() -> None:
    counts = np.zeros(2048)
    counts[:64] = 10_000
    counts[-1] = 1
    histogram = Histogram(counts, 0.0, 100.0)
    assert histogram.range("minmax") == (0.0, 100.0)
    assert histogram.range("percentile")[1] < 5
    assert histogram.range("mse")[1] < 60


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_tensor_has_a_range(method: str) -> None:
    counts = np.zeros(2048)
    counts[0] = 7
    low, high = Histogram(counts, 3.0, 3.0).range(method)
    assert low == 0
    assert high == pytest.approx(3.0, abs=1e-6)


def test_histograms_hold_every_value() -> None:
    model = network()
    (found,) = collect(model, ["stem6"], images(3)).values()
    assert found.counts.sum() == 3 * 8 * SIZE * SIZE
    assert found.low == 0
    assert 0 < found.high <= 6


def test_images_are_read_evenly_and_unreadable_ones_are_named(tmp_path: Path) -> None:
    info = DetectorInfo(input_size_wh=(SIZE, SIZE))
    for index in range(9):
        (tmp_path / f"{index}.png").write_bytes(encode(Image.new("RGB", (20, 30)), "PNG"))
    (tmp_path / "4.png").write_bytes(b"no image")
    found = load_images(tmp_path, info, 3)
    assert [path.name for path in found.paths] == ["0.png", "8.png"]
    assert found.pixels.shape == (2, SIZE, SIZE, 3)
    assert "4.png" in found.unreadable[0]


def test_without_images_the_folder_is_named(tmp_path: Path) -> None:
    info = DetectorInfo(input_size_wh=(SIZE, SIZE))
    with pytest.raises(OptimizationError, match="no folder"):
        load_images(tmp_path / "missing", info, 4)
    with pytest.raises(OptimizationError, match="holds no images"):
        load_images(tmp_path, info, 4)
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(OptimizationError, match=r"no image that can be read: a\.jpg"):
        load_images(tmp_path, info, 4)


def test_the_harmful_layer_is_found_and_its_noise_goes_with_it() -> None:
    model = network(wide=True)
    ranges = ranges_of(model, "openvino")
    ranked = rank_layers(model, ranges, "openvino", images())
    assert ranked[0].layer == "narrow"  # reads 8 channels at one scale
    assert ranked[0].noise > 10 * ranked[-1].noise
    everything = relative_error(model, quantize(model, ranges, "openvino"))
    spared = relative_error(model, quantize(model, ranges, "openvino", {"narrow"}))
    assert spared < everything


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 5, 8])
def test_the_fewest_float_layers_are_found(needed: int) -> None:
    ranked = [LayerNoise(str(index), (1,), 1.0) for index in range(16)]
    asked: list[int] = []

    def loss(layers: frozenset[str]) -> float:
        asked.append(len(layers))
        return 0.0 if len(layers) >= needed else 1.0

    assert len(fewest_float_layers(ranked, loss, 0.5)) == needed
    assert len(asked) == len(set(asked)) <= 8


def test_a_hopeless_detector_is_an_error_with_the_best_that_was_found() -> None:
    ranked = [LayerNoise(str(index), (1,), 1.0) for index in range(16)]
    with pytest.raises(OptimizationError, match=r"loses 0\.9200 even with 8 of 16 layers"):
        fewest_float_layers(ranked, lambda layers: 1 - len(layers) / 100, 0.5)


def test_nodes_are_sorted_as_far_as_needed() -> None:
    graph = network().graph
    names = [node.name for node in graph.node]
    shuffled = [onnx.NodeProto.FromString(n.SerializeToString()) for n in reversed(graph.node)]
    del graph.node[:]
    graph.node.extend(shuffled)
    sort_nodes(graph)
    made = {"images", *(tensor.name for tensor in graph.initializer)}
    for node in graph.node:
        assert made.issuperset(node.input)
        made.update(node.output)
    assert sorted(node.name for node in graph.node) == sorted(names)
