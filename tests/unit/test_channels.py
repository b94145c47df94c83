"""Channel pruning: what is coupled goes together, and what is left computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from contract import DetectorInfo
from optimization.channel_calibration import activation_moments
from optimization.channel_groups import ChannelGraph
from optimization.channels import channels_by_layer, prune_channels, remove_channels
from optimization.network import copy_model
from optimization.pruning import PruningError, macs_and_parameters

ROOT = Path(__file__).resolve().parents[2]
DETECTOR = ROOT / "build/models/coco-ssd/model.onnx"
YOLOX = Path(__file__).resolve().parents[3] / "shared/models/yolox_nano.onnx"

Array = npt.NDArray[Any]


class Net:
    """A small network from `x` [N, 4, 12, 12], with random weights, layer by layer."""

    def __init__(self, opset: int = 17) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, Array] = {}
        self.opset = opset
        self.random = np.random.default_rng(3)

    def add(
        self, op: str, *inputs: str | Array | np.float32, outputs: int = 1, **attributes: Any
    ) -> Any:
        name = f"{op.lower()}{len(self.nodes)}"
        names = [
            item if isinstance(item, str) else self.constant(f"{name}_{index}", np.asarray(item))
            for index, item in enumerate(inputs)
        ]
        made = [name] if outputs == 1 else [f"{name}_out{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, names, made, name=name, **attributes))
        return name if outputs == 1 else made

    def constant(self, name: str, array: Array) -> str:
        self.arrays[name] = array
        return name

    def weights(self, *shape: int) -> Array:
        return self.random.normal(0, 0.5, shape).astype(np.float32)

    def conv(self, source: str, inputs: int, outputs: int, name: str, **attributes: Any) -> str:
        """A 3 x 3 convolution with bias; `inputs` are those of one group."""
        weight = self.constant(f"{name}.w", self.weights(outputs, inputs, 3, 3))
        bias = self.constant(f"{name}.b", self.weights(outputs))
        made: str = self.add("Conv", source, weight, bias, pads=[1] * 4, **attributes)
        return made

    def model(self, output: str, dims: tuple[int | str, ...]) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 12, 12])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", *dims])],
            [numpy_helper.from_array(array, name) for name, array in self.arrays.items()],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def run(model: onnx.ModelProto, values: Array, outputs: list[str] | None = None) -> list[Array]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    results: list[Array] = session.run(outputs, {session.get_inputs()[0].name: values})
    return results


def inputs(count: int = 2) -> Array:
    return np.random.default_rng(5).normal(size=(count, 4, 12, 12)).astype(np.float32)


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {item.name: tuple(item.dims) for item in model.graph.initializer}


def zeroed(model: onnx.ModelProto, graph: ChannelGraph, removed: Array) -> onnx.ModelProto:
    """The model with the removed channels' filters, biases and scales zero, nothing smaller."""
    model = copy_model(model)
    read = {(mixer.weight, mixer.input_axis) for mixer in graph.mixers}
    for item in model.graph.initializer:
        array = numpy_helper.to_array(item).copy()
        for (name, axis), labels in graph.axes.items():
            if name == item.name and (name, axis) not in read:
                np.moveaxis(array, axis, 0)[np.isin(graph.coupled(labels), removed)] = 0
        item.CopyFrom(numpy_helper.from_array(array, item.name))
    return model


def chain(net: Net) -> onnx.ModelProto:
    a = net.add("Relu", net.conv("x", 4, 16, "one"))
    return net.model(net.conv(a, 16, 8, "two"), (8, 12, 12))


def depthwise(net: Net) -> onnx.ModelProto:
    a = net.add("Clip", net.conv("x", 4, 16, "one"), np.float32(0), np.float32(6))
    b = net.add("Relu", net.conv(a, 1, 32, "deep", group=16))  # two filters a channel
    return net.model(net.conv(b, 32, 8, "two"), (8, 12, 12))


def grouped(net: Net) -> onnx.ModelProto:
    a = net.add("Relu", net.conv("x", 4, 16, "one"))
    b = net.add("Relu", net.conv(a, 8, 16, "middle", group=2))
    return net.model(net.conv(b, 16, 8, "two"), (8, 12, 12))


def vectors(net: Net) -> onnx.ModelProto:
    """Batch norm, a bias of its own, a scale without a batch axis, and PRelu."""
    statistics = [net.weights(16) for _ in range(3)] + [np.ones(16, np.float32)]
    a = net.add("BatchNormalization", net.conv("x", 4, 16, "one"), *statistics)
    b = net.add("Add", a, net.weights(1, 16, 1, 1))
    c = net.add("Mul", net.weights(16, 1, 1), b)
    d = net.add("PRelu", net.add("Div", c, np.float32(2)), net.weights(16, 1, 1))
    return net.model(net.conv(d, 16, 8, "two"), (8, 12, 12))


def residual(net: Net) -> onnx.ModelProto:
    a = net.add("Relu", net.conv("x", 4, 16, "one"))
    b = net.add("Relu", net.conv(a, 16, 24, "inner"))
    c = net.add("Add", net.conv(b, 24, 16, "back"), a)
    return net.model(net.conv(c, 16, 8, "two"), (8, 12, 12))


def concat(net: Net) -> onnx.ModelProto:
    a = net.add("Relu", net.conv("x", 4, 16, "one"))
    b = net.add("Relu", net.conv("x", 4, 24, "other"))
    joined = net.add("Concat", "x", b, a, a, axis=1)  # the input's four channels must stay
    return net.model(net.conv(joined, 60, 8, "two"), (8, 12, 12))


def split(net: Net) -> onnx.ModelProto:
    """A cross-stage block: the second half goes through a layer and is added to itself."""
    a = net.add("Relu", net.conv("x", 4, 32, "one"))
    first, second = net.add("Split", a, outputs=2, axis=1)
    c = net.add("Add", second, net.conv(second, 16, 16, "inner"))
    joined = net.add("Concat", first, second, c, axis=-3)
    return net.model(net.conv(joined, 48, 8, "two"), (8, 12, 12))


def uneven_split(net: Net) -> onnx.ModelProto:
    a = net.add("Relu", net.conv("x", 4, 24, "one"))
    first, second = net.add("Split", a, np.array([8, 16]), outputs=2, axis=1)
    left, right = net.conv(first, 8, 8, "left"), net.conv(second, 16, 8, "right")
    return net.model(net.add("Add", left, right), (8, 12, 12))


def slices(net: Net) -> onnx.ModelProto:
    a = net.add("Relu", net.conv("x", 4, 24, "one"))
    top = np.iinfo(np.int64).max
    rows = net.add("Slice", a, np.array([0]), np.array([top]), np.array([2]), np.array([2]))
    head = net.add("Slice", rows, np.array([0]), np.array([8]), np.array([1]))
    tail = net.add("Slice", rows, np.array([0, -16]), np.array([6, top]), np.array([2, 1]))
    left, right = net.conv(head, 8, 8, "left"), net.conv(tail, 16, 8, "right")
    return net.model(net.add("Add", left, right), (8, 6, 12))


def gates(net: Net) -> onnx.ModelProto:
    """SiLU, hard swish both ways, and squeeze-and-excitation."""
    a = net.conv("x", 4, 16, "one")
    a = net.add("Mul", a, net.add("Sigmoid", a))
    a = net.add("HardSwish", net.conv(a, 16, 16, "inner"))
    a = net.add("Mul", net.add("HardSigmoid", a), a)
    pooled = net.add("GlobalAveragePool", a)
    squeezed = net.add("Relu", net.add("Conv", pooled, net.weights(16, 16, 1, 1)))
    weight = net.constant("excite.w", net.weights(16, 16, 1, 1))
    excited = net.add("Sigmoid", net.add("Conv", squeezed, weight, net.weights(16)))
    return net.model(net.conv(net.add("Mul", a, excited), 16, 8, "two"), (8, 12, 12))


def shapes(net: Net) -> onnx.ModelProto:
    """Pooling, padding and resizing, by scales and by sizes."""
    a = net.add("Relu", net.conv("x", 4, 16, "one"))
    a = net.add("MaxPool", a, kernel_shape=[2, 2], strides=[2, 2])
    a = net.add("Pad", a, np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    a = net.add("AveragePool", a, kernel_shape=[2, 2], strides=[2, 2])
    a = net.add("Resize", a, "", np.array([1, 1, 2, 2], np.float32))
    a = net.add("Resize", net.add("Identity", a), "", "", np.array([2, 16, 12, 12]))
    mean = net.add("ReduceMean", a, axes=[2, 3], keepdims=1)
    return net.model(net.conv(net.add("Sub", a, mean), 16, 8, "two"), (8, 12, 12))


def classifier(net: Net) -> onnx.ModelProto:
    a = net.add("Relu", net.conv("x", 4, 16, "one", strides=[4, 4]))
    b = net.add("Relu", net.add("Gemm", net.add("Flatten", a), net.weights(24, 144), transB=1))
    return net.model(net.add("Gemm", b, net.weights(24, 8), net.weights(8)), (8,))


def shared(net: Net) -> onnx.ModelProto:
    """One head on two levels, as RetinaNet has it."""
    a = net.add("Relu", net.conv("x", 4, 16, "one"))
    b = net.add("Relu", net.conv("x", 4, 16, "other"))
    net.conv(a, 16, 24, "head")
    net.add("Conv", b, "head.w", "head.b", pads=[1] * 4)
    first, second = net.nodes[-2].output[0], net.nodes[-1].output[0]
    joined = net.add("Concat", first, second, axis=2)
    return net.model(net.conv(joined, 24, 8, "two"), (8, 24, 12))


# Graph, opset, and what is left of weights when half of each group's channels have gone.
CASES: list[tuple[Callable[[Net], onnx.ModelProto], int, dict[str, tuple[int, ...]]]] = [
    (chain, 17, {"one.w": (8, 4, 3, 3), "one.b": (8,), "two.w": (8, 8, 3, 3), "two.b": (8,)}),
    (depthwise, 17, {"deep.w": (16, 1, 3, 3), "deep.b": (16,), "two.w": (8, 16, 3, 3)}),
    (grouped, 17, {"one.w": (8, 4, 3, 3), "middle.w": (8, 4, 3, 3), "two.w": (8, 8, 3, 3)}),
    (vectors, 17, {"batchnormalization1_4": (8,), "add2_1": (1, 8, 1, 1), "mul3_0": (8, 1, 1)}),
    (residual, 17, {"inner.w": (12, 8, 3, 3), "back.w": (8, 12, 3, 3), "two.w": (8, 8, 3, 3)}),
    (concat, 17, {"one.w": (8, 4, 3, 3), "other.w": (12, 4, 3, 3), "two.w": (8, 32, 3, 3)}),
    (split, 17, {"one.w": (16, 4, 3, 3), "inner.w": (8, 8, 3, 3), "two.w": (8, 24, 3, 3)}),
    (split, 11, {"one.w": (16, 4, 3, 3), "inner.w": (8, 8, 3, 3), "two.w": (8, 24, 3, 3)}),
    (uneven_split, 17, {"left.w": (8, 4, 3, 3), "right.w": (8, 8, 3, 3)}),
    (slices, 17, {"left.w": (8, 4, 3, 3), "right.w": (8, 8, 3, 3)}),
    (gates, 17, {"inner.w": (8, 8, 3, 3), "excite.w": (8, 8, 1, 1), "two.w": (8, 8, 3, 3)}),
    (shapes, 17, {"one.w": (8, 4, 3, 3), "two.w": (8, 8, 3, 3)}),
    (classifier, 17, {"one.w": (8, 4, 3, 3), "gemm3_1": (12, 72), "gemm5_1": (12, 8)}),
    (shared, 17, {"head.w": (12, 8, 3, 3), "two.w": (8, 12, 3, 3), "other.w": (8, 4, 3, 3)}),
]


@pytest.mark.parametrize(
    ("build", "opset", "expected"), CASES, ids=[f"{case[0].__name__}-{case[1]}" for case in CASES]
)
def test_what_is_coupled_goes_and_the_rest_computes_the_same(
    build: Callable[[Net], onnx.ModelProto], opset: int, expected: dict[str, tuple[int, ...]]
) -> None:
    model = build(Net(opset))
    graph = ChannelGraph(model)
    groups = [group.channels for group in graph.groups()]
    random = np.random.default_rng(1)
    removed = np.concatenate([random.permutation(group)[: len(group) // 2] for group in groups])
    pruned = remove_channels(model, graph, removed)
    shapes = shapes_of(pruned)
    assert {name: shapes[name] for name in expected} == expected
    assert pruned.graph.input == model.graph.input
    assert pruned.graph.output == model.graph.output
    (result,) = run(pruned, inputs())
    (reference,) = run(zeroed(model, graph, removed), inputs())
    np.testing.assert_allclose(result, reference, rtol=1e-4, atol=1e-4)
    (unpruned,) = run(model, inputs())
    assert np.abs(unpruned - reference).max() > 0.1  # so the comparison could have failed


def cut_by_split(net: Net, a: str) -> tuple[str, str]:
    first, second = net.add("Split", a, np.array([8, 16]), outputs=2, axis=1)
    return first, second


def cut_by_slice(net: Net, a: str) -> tuple[str, str]:
    first = net.add("Slice", a, np.array([0]), np.array([8]), np.array([1]))
    return first, net.add("Slice", a, np.array([8]), np.array([24]), np.array([1]))


@pytest.mark.parametrize("cut", [cut_by_split, cut_by_slice])
def test_something_is_left_of_each_part(cut: Callable[[Net, str], tuple[str, str]]) -> None:
    net = Net()
    a = net.add("Relu", net.conv("x", 4, 24, "one"))
    net.arrays["one.w"][:8] *= 1e-3  # so the first part would go as a whole
    first, second = cut(net, a)
    pooled = net.add("MaxPool", first, kernel_shape=[3, 3], pads=[1] * 4)
    joined = net.add("Concat", pooled, second, axis=1)
    model = net.model(net.conv(joined, 24, 8, "two"), (8, 12, 12))
    assert sorted(len(group.channels) for group in ChannelGraph(model).groups()) == [8, 16]
    pruned = prune_channels(model, 0.4, multiple=4)
    (weights,) = (i for i in pruned.graph.initializer if i.name == "one.w")
    weak = np.abs(numpy_helper.to_array(weights)).max(axis=(1, 2, 3)) < 0.1
    assert 0 < weak.sum() < 8
    (result,) = run(pruned, inputs())
    assert result.shape == (2, 8, 12, 12)


def to_reshape(net: Net, a: str) -> str:
    b: str = net.add("Reshape", a, np.array([0, 8, 2, -1]))
    c = net.add("Transpose", b, perm=[0, 2, 1, 3])
    made: str = net.add("Reshape", c, np.array([0, 16, 12, 12]))
    return made


@pytest.mark.parametrize(
    "stop",
    [
        to_reshape,
        lambda net, a: net.add("Softmax", a, axis=1),
        lambda net, a: net.add("Mul", a, net.add("ReduceMax", a, axes=[1], keepdims=1)),
        lambda net, a: net.add("Gather", a, np.arange(16)[::-1].copy(), axis=1),
        lambda net, a: net.add(
            "Slice", a, np.array([0]), np.array([32]), np.array([1]), np.array([1])
        ),
    ],
    ids=["shuffle", "softmax", "max over channels", "gather", "slice that keeps all"],
)
def test_what_is_not_understood_is_left_alone(stop: Callable[[Net, str], str]) -> None:
    net = Net()
    a = net.add("Relu", net.conv("x", 4, 16, "one"))
    b = net.conv(stop(net, a), 16, 16, "inner")
    model = net.model(net.conv(net.add("Relu", b), 16, 8, "two"), (8, 12, 12))
    pruned = prune_channels(model, 0.2)
    shapes = shapes_of(pruned)
    understood = net.nodes[2].op_type == "Slice"
    assert (shapes["one.w"][0] < 16) is understood
    if not understood:
        assert shapes["inner.w"] == (8, 16, 3, 3)
    assert run(pruned, inputs())[0].shape == (2, 8, 12, 12)


@pytest.mark.parametrize("swapped", [False, True])
def test_what_is_added_to_the_input_is_left_alone(swapped: bool) -> None:
    net = Net()
    operands = [net.conv("x", 4, 4, "one"), "x"]
    a = net.add("Add", *operands[:: -1 if swapped else 1])
    b = net.add("Relu", net.conv(a, 4, 16, "inner"))
    model = net.model(net.conv(b, 16, 8, "two"), (8, 12, 12))
    shapes = shapes_of(prune_channels(model, 0.4, multiple=1))
    assert shapes["one.w"] == (4, 4, 3, 3)
    assert shapes["inner.w"][0] < 16


@pytest.mark.parametrize("reader", ["Relu", "Size", "Transpose"])
def test_weights_that_something_else_reads_are_left_alone(reader: str) -> None:
    net = Net()
    a = net.add("Relu", net.conv("x", 4, 16, "one"))
    b = net.add("Relu", net.conv(a, 16, 24, "inner"))
    read = net.add(reader, "one.w")
    total = net.add("Cast", read, to=TensorProto.FLOAT)
    if reader != "Size":
        total = net.add("ReduceSum", total, keepdims=0)
    c = net.add("Mul", net.conv(b, 24, 8, "two"), total)
    model = net.model(c, (8, 12, 12))
    pruned = prune_channels(model, 0.5)
    shapes = shapes_of(pruned)
    assert shapes["one.w"] == (16, 4, 3, 3)
    assert shapes["inner.w"][0] < 24
    assert run(pruned, inputs())[0].shape == (2, 8, 12, 12)


def test_the_weakest_filters_go_without_images() -> None:
    net = Net()
    model = chain(net)
    weak = [1, 3, 4, 7, 8, 11, 13, 15]
    net.arrays["one.w"][weak] *= 0.1
    model = net.model(model.graph.output[0].name, (8, 12, 12))
    pruned = prune_channels(model, 0.5)
    (kept,) = (i for i in pruned.graph.initializer if i.name == "one.w")
    assert np.array_equal(numpy_helper.to_array(kept), np.delete(net.arrays["one.w"], weak, 0))


def test_channels_that_others_stand_in_for_go_first_and_cost_nothing() -> None:
    net = Net()
    model = chain(net)
    weights, bias = net.arrays["one.w"], net.arrays["one.b"]
    weights[8:14], bias[8:14] = 2 * weights[:6], 2 * bias[:6]  # strong, but doubles
    weights[14:], bias[14:] = 0, 3.0  # constant
    model = net.model(model.graph.output[0].name, (8, 12, 12))
    images = np.random.default_rng(9).normal(size=(16, 4, 12, 12)).astype(np.float32)
    (reference,) = run(model, inputs())
    (fitted,) = run(prune_channels(model, 0.5, images=images), inputs())
    (unfitted,) = run(prune_channels(model, 0.5), inputs())
    inside = np.s_[:, :, 1:-1, 1:-1]  # the constant is not one where the kernel meets padding
    scale = float(reference.std())
    assert np.abs(fitted - reference)[inside].max() < 0.05 * scale
    assert np.abs(unfitted - reference)[inside].max() > 0.5 * scale


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}")
def test_fitted_weights_come_nearer_for_every_kind_of_graph(case: tuple[Any, int, Any]) -> None:
    model = case[0](Net(case[1]))
    graph = ChannelGraph(model)
    images = np.random.default_rng(11).normal(size=(256, 4, 12, 12)).astype(np.float32)
    moments = activation_moments(model, (mixer.node.input[0] for mixer in graph.mixers), images)
    removed = np.concatenate(
        [group.channels[: len(group.channels) // 4] for group in graph.groups()]
    )
    (reference,) = run(model, inputs())
    plain, fitted = (
        run(remove_channels(model, graph, removed, known), inputs())[0] for known in (None, moments)
    )
    assert np.square(fitted - reference).mean() < 0.9 * np.square(plain - reference).mean()
    pruned = prune_channels(model, 0.2, images=images[:8], multiple=2)
    assert macs_and_parameters(pruned).macs <= 0.8 * macs_and_parameters(model).macs


@pytest.mark.parametrize("multiple", [1, 4, 8, 16])
def test_multiples_stay(multiple: int) -> None:
    net = Net()
    a = net.add("Relu", net.conv("x", 4, 44, "one"))
    b = net.add("Relu", net.conv(a, 44, 32, "inner"))
    model = net.model(net.conv(b, 32, 8, "two"), (8, 12, 12))
    before = macs_and_parameters(model)
    pruned = prune_channels(model, 0.3, multiple=multiple)
    changes = channels_by_layer(model, pruned)
    assert macs_and_parameters(pruned).macs <= 0.7 * before.macs
    assert [change.before[0] for change in changes] == [44, 32, 8]
    for change in changes[:2]:
        assert change.after[0] % multiple == 0 or change.after == change.before
    assert changes[2].after[0] == 8


def test_constants_in_nodes_and_as_inputs() -> None:
    model = chain(Net())
    plain = shapes_of(prune_channels(model, 0.4))
    as_nodes, as_inputs = copy_model(model), copy_model(model)
    nodes = list(as_nodes.graph.node)
    del as_nodes.graph.node[:]
    as_nodes.graph.node.extend(
        helper.make_node("Constant", [], [item.name], value=item)
        for item in as_nodes.graph.initializer
    )
    as_nodes.graph.node.extend(nodes)
    del as_nodes.graph.initializer[:]
    as_inputs.graph.input.extend(
        helper.make_tensor_value_info(item.name, item.data_type, item.dims)
        for item in as_inputs.graph.initializer
    )
    for variant in (as_nodes, as_inputs):
        assert shapes_of(prune_channels(variant, 0.4)) == plain


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, 2.0])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(PruningError, match="between 0 and 1"):
        prune_channels(chain(Net()), fraction)


def test_more_than_can_go_is_refused_with_what_can() -> None:
    with pytest.raises(PruningError, match=r"at most 75% .* not 90%"):
        prune_channels(chain(Net()), 0.9, multiple=1)


def test_nothing_to_remove_is_refused() -> None:
    net = Net()
    model = net.model(net.conv("x", 4, 32, "one"), (32, 12, 12))
    with pytest.raises(PruningError, match="no channels that can be removed"):
        prune_channels(model, 0.1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 4, 12, 12), np.float32), "no images"),
        (np.zeros((2, 5, 12, 12), np.float32), "does not run"),
        (np.zeros((2, 4, 12, 12), np.uint8), "does not run"),
    ],
)
def test_images_that_do_not_fit_are_refused(images: Array, message: str) -> None:
    with pytest.raises(PruningError, match=message):
        prune_channels(chain(Net()), 0.3, images=images)


def test_no_multiple_is_refused() -> None:
    with pytest.raises(PruningError, match="multiples of 0"):
        prune_channels(chain(Net()), 0.3, multiple=0)


def half_of_each_group(graph: ChannelGraph) -> Array:
    random = np.random.default_rng(2)
    groups = [group.channels for group in graph.groups()]
    assert len(groups) > 30
    return np.concatenate([random.permutation(group)[: len(group) // 2] for group in groups])


@pytest.mark.skipif(not DETECTOR.exists(), reason="make model has not been run")
def test_the_default_detector_shrinks_and_computes_the_same() -> None:
    model = onnx.load(DETECTOR)
    graph = ChannelGraph(model)
    removed = half_of_each_group(graph)
    pruned, reference = remove_channels(model, graph, removed), zeroed(model, graph, removed)
    assert DetectorInfo.of(pruned) == DetectorInfo.of(model)
    names = ["detserve/logits", "detserve/encodings"]
    for item in (pruned, reference):
        item.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
        )
    images = np.random.default_rng(0).integers(0, 256, (2, 300, 300, 3), np.uint8)
    for got, wanted in zip(run(pruned, images, names), run(reference, images, names), strict=True):
        assert wanted.std() > 0.1
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)
    before, after = macs_and_parameters(model), macs_and_parameters(pruned)
    assert after.macs < 0.45 * before.macs
    assert after.parameters < 0.45 * before.parameters


@pytest.mark.skipif(not YOLOX.exists(), reason="YOLOX-Nano is not there")
def test_yolox_shrinks_and_computes_the_same() -> None:
    model = onnx.load(YOLOX)
    graph = ChannelGraph(model)
    removed = half_of_each_group(graph)
    pruned, reference = remove_channels(model, graph, removed), zeroed(model, graph, removed)
    image = np.random.default_rng(0).uniform(0, 255, (1, 3, 416, 416)).astype(np.float32)
    (got,), (wanted,) = run(pruned, image), run(reference, image)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)
    assert wanted[..., :4].std() > 0.1
    assert macs_and_parameters(pruned).macs < 0.4 * macs_and_parameters(model).macs


@pytest.mark.skipif(not DETECTOR.exists(), reason="make model has not been run")
def test_the_default_detector_pruned_by_a_tenth_still_fits_the_contract() -> None:
    model = onnx.load(DETECTOR)
    pruned = prune_channels(model, 0.1)
    assert DetectorInfo.of(pruned) == DetectorInfo.of(model)
    before, after = macs_and_parameters(model), macs_and_parameters(pruned)
    assert 0.85 < after.macs / before.macs <= 0.9
    for change in channels_by_layer(model, pruned):
        assert change.after[0] == change.before[0] or change.after[0] % 8 == 0
    (candidates,) = run(pruned, np.zeros((3, 300, 300, 3), np.uint8))
    assert candidates.shape == (3, 300, 6)
