"""Zeros in weights: how many, where, and what stays as it was."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimization.pruning import (
    PruningError,
    is_2_4,
    macs_and_parameters,
    prune_2_4,
    prune_unstructured,
    sparsity_by_layer,
)

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = ROOT / "build/models/coco-ssd/model.onnx"

Array = npt.NDArray[Any]


def make_model(dtype: type = np.float32, *, constant_nodes: bool = False) -> onnx.ModelProto:
    """Conv 3 to 8, depthwise 3 x 3, Conv 8 to 12, Flatten, Gemm to 4, MatMul to 5."""
    random = np.random.default_rng(0)
    shapes = {
        "first": (8, 3, 3, 3), "depthwise": (8, 1, 3, 3), "point": (12, 8, 1, 1),
        "gemm": (4, 12 * 16), "matmul": (4, 5), "bias": (8,),
    }  # fmt: skip
    arrays: dict[str, Array] = {
        name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()
    }
    arrays["point"] *= dtype(1e-3)  # the smallest weights of all are in one layer
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "first", "bias"], ["a"], name="first_conv", pads=[1] * 4),
        node("Conv", ["a", "depthwise"], ["b"], pads=[1] * 4, group=8),
        node("Conv", ["b", "point"], ["c"]),
        node("Flatten", ["c"], ["d"]),
        node("Gemm", ["d", "gemm"], ["e"], transB=1),
        node("MatMul", ["e", "matmul"], ["y"]),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    if constant_nodes:
        nodes = [node("Constant", [], [item.name], value=item) for item in tensors] + nodes
        tensors = []
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("y", kind, ["N", 5])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def arrays_of(model: onnx.ModelProto) -> dict[str, Array]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.93])
def test_unstructured_zeroes_exactly_the_smallest(fraction: float) -> None:
    model = make_model()
    before, after = arrays_of(model), arrays_of(prune_unstructured(model, fraction))
    names = set(before) - {"bias"}
    old = np.concatenate([before[name].ravel() for name in names])
    new = np.concatenate([after[name].ravel() for name in names])
    assert (new == 0).sum() == round(fraction * old.size)
    assert np.abs(old[new == 0]).max() <= np.abs(old[new != 0]).min()
    assert np.array_equal(old[new != 0], new[new != 0])
    assert np.array_equal(before["bias"], after["bias"])


def test_unstructured_looks_at_all_layers_together_and_says_so() -> None:
    report = sparsity_by_layer(prune_unstructured(make_model(), 0.09))
    by_shape = {layer.shape: layer for layer in report}
    assert report[0].layer == "first_conv"
    assert by_shape[12, 8, 1, 1].fraction == 1.0  # 96 of 1172 weights, each a thousandth
    assert by_shape[8, 3, 3, 3].fraction < 0.1


def test_the_model_given_is_left_alone() -> None:
    model = make_model()
    text = model.SerializeToString()
    prune_unstructured(model, 0.5)
    prune_2_4(model)
    assert model.SerializeToString() == text


@pytest.mark.parametrize("constant_nodes", [False, True])
def test_weights_in_constant_nodes_and_half_precision(constant_nodes: bool) -> None:
    model = prune_unstructured(make_model(np.float16, constant_nodes=constant_nodes), 0.5)
    layers = sparsity_by_layer(model)
    total = sum(np.prod(layer.shape) for layer in layers)
    assert sum(layer.zeros for layer in layers) == round(0.5 * total)
    onnx.checker.check_model(model, full_check=True)


def test_2_4_keeps_the_two_largest_of_every_four() -> None:
    model = make_model()
    before, after = arrays_of(model), arrays_of(prune_2_4(model))
    for name, axis in (("point", 1), ("gemm", 1), ("matmul", 0)):
        old, new = np.moveaxis(before[name], axis, -1), np.moveaxis(after[name], axis, -1)
        for index in itertools.product(*map(range, old.shape[:-1])):
            for start in range(0, old.shape[-1], 4):
                group = slice(start, start + 4)
                expected = old[index][group].copy()
                expected[np.argsort(np.abs(expected))[:2]] = 0
                assert np.array_equal(new[index][group], expected)
    for name in ("first", "depthwise", "bias"):
        assert np.array_equal(before[name], after[name])


def test_2_4_says_which_layers_stay_dense_and_why() -> None:
    first, depthwise, point, gemm, matmul = sparsity_by_layer(prune_2_4(make_model()))
    assert "3 input channels" in first.obstacle
    assert not first.two_four
    assert "depthwise" in depthwise.obstacle
    assert not depthwise.two_four
    for layer in (point, gemm, matmul):
        assert layer.two_four
        assert layer.obstacle == ""
        assert layer.fraction == 0.5


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1, 0, 2, 0], True),
        ([0, 0, 0, 0], True),
        ([1, 2, 3, 0], False),
        ([0, 1, 1, 0, 1, 1, 0, 0], True),
        ([0, 0, 1, 1, 1, 1, 1, 0], False),  # groups are aligned: the second has three
        ([0, 0, 1], False),
        ([0, 0, 1, 0, 0, 1], False),
    ],
)
def test_is_2_4(row: list[int], expected: bool) -> None:
    weights = np.array(row, np.float32)
    assert is_2_4(weights.reshape(1, -1, 1, 1)) is expected
    assert is_2_4(weights[:, None], axis=0) is expected


def test_is_2_4_looks_at_each_position_of_the_kernel() -> None:
    weights = np.zeros((1, 4, 1, 2), np.float32)
    weights[0, :2, 0, 0] = weights[0, 2:, 0, 1] = 1
    assert is_2_4(weights)
    weights[0, 0, 0, 1] = 1
    assert not is_2_4(weights)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(PruningError, match="between 0 and 1"):
        prune_unstructured(make_model(), fraction)


def test_a_model_without_weights_is_refused() -> None:
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [info], [out])
    for prune in (prune_2_4, lambda model: prune_unstructured(model, 0.5)):
        with pytest.raises(PruningError, match="no constant float weights"):
            prune(helper.make_model(graph))


def test_2_4_is_refused_where_no_layer_fits() -> None:
    model = make_model()
    del model.graph.node[2:]
    model.graph.output[0].name = "b"
    with pytest.raises(PruningError, match=r"3 input channels.*depthwise"):
        prune_2_4(model)


def test_macs_and_parameters_counted_by_hand() -> None:
    complexity = macs_and_parameters(make_model())
    convolutions = 16 * (8 * 27 + 8 * 9 + 12 * 8)
    assert complexity.macs == convolutions + 4 * 192 + 4 * 5
    assert complexity.parameters == 8 * 27 + 8 + 8 * 9 + 12 * 8 + 4 * 192 + 4 * 5


def test_macs_of_a_transposed_convolution() -> None:
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], group=2)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 5, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6, 10, 12])],
        [numpy_helper.from_array(np.ones((4, 3, 2, 2), np.float32), "w")],
    )
    assert macs_and_parameters(helper.make_model(graph)).macs == 4 * 5 * 6 * 3 * 4


def test_macs_need_a_fixed_size() -> None:
    model = make_model()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    del model.graph.node[3:]
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("c", TensorProto.FLOAT, ["N", 12, "H", 4])
    )
    with pytest.raises(PruningError, match=r"first_conv.*fixed height"):
        macs_and_parameters(model)


@pytest.mark.skipif(not DETECTOR.exists(), reason="make model has not been run")
def test_the_default_detector_keeps_its_contract() -> None:
    model = onnx.load(DETECTOR)
    images = np.random.default_rng(0).integers(0, 256, (1, 300, 300, 3), np.uint8)
    for pruned in (prune_unstructured(model, 0.3), prune_2_4(model)):
        assert pruned.graph.output == model.graph.output
        assert pruned.metadata_props == model.metadata_props
        session = ort.InferenceSession(pruned.SerializeToString())
        (candidates,) = session.run(None, {"images": images})
        assert candidates.shape == (1, 300, 6)
    layers = sparsity_by_layer(pruned)
    assert all(layer.two_four != bool(layer.obstacle) for layer in layers)
    assert sum(layer.two_four for layer in layers) == 54  # 34 layers are depthwise or the first
