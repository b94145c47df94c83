"""What goes into an exported model: layouts, types, sizes, opsets, files, and the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import coco
import import_detector
from families import DetectorImportError, batch
from families.checking import exported_candidates, verify
from families.folding import ImportOptions, fold
from families.raw import load, prepare
from tests.family_models import Array, assert_same_rows, noise_images, raw_model, run
from tests.models import write_detector

CELLS = 8 * 8 + 4 * 4 + 2 * 2  # of strides 8, 16, 32 in 64 x 64
HEAD = np.random.default_rng(1).uniform(0.1, 0.9, (4 + 5, CELLS))
SPREAD = 0.1
MEAN_STD: dict[str, Any] = {"mean": (10.0, 20.0, 30.0), "std": (50.0, 60.0, 70.0)}


def model(**given: Any) -> onnx.ModelProto:
    return raw_model({"output0": HEAD}, **({"spread": SPREAD} | given))


def ops(made: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in made.graph.node]


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("normalise", [{}, MEAN_STD])
@pytest.mark.parametrize(
    ("given", "direct"),
    [
        ({"first": "conv"}, True),
        ({"first": "focus"}, True),
        ({"first": "add"}, False),
        ({"layout": "NHWC"}, False),
        ({"dtype": TensorProto.UINT8}, False),
        ({"dtype": TensorProto.UINT8, "layout": "NHWC"}, False),
        ({"opset": 11}, True),
        ({"opset": 18}, True),
        ({"batch": 1, "first": "focus", "opset": 11}, True),
        ({"batch": 3}, True),
    ],
)
def test_every_input_gives_what_the_model_gives(
    given: dict[str, Any], direct: bool, normalise: dict[str, Any], order: Any
) -> None:
    folded = fold(model(**given), ImportOptions(order=order, **normalise))
    images = noise_images(4)
    (found,) = run(folded.model, "images", images).values()
    for rows, expected in zip(found, exported_candidates(folded, images), strict=True):
        assert_same_rows(rows, expected)
    # Normalised by the first convolution's weights, or by nodes of their own.
    assert ("Transpose" not in ops(folded.model)[:5]) == direct or given.get("layout") == "NHWC"
    assert not direct or not {"Mul", "Gather"} & set(ops(folded.model)[:5])


def test_the_focus_is_merged_into_one_convolution() -> None:
    folded = fold(model(first="focus"))
    made = {node.op_type: node for node in folded.model.graph.node}
    assert ops(folded.model).count("Conv") == 1
    attributes = {a.name: list(a.ints) for a in made["Conv"].attribute if a.ints}
    assert attributes["kernel_shape"] == [6, 18]
    assert attributes["strides"] == [2, 6]
    assert attributes["pads"] == [2, 6, 2, 6]


def test_float16_is_computed_in_float16() -> None:
    folded = fold(model(dtype=TensorProto.FLOAT16))
    images = noise_images(2)
    (found,) = run(folded.model, "images", images).values()
    assert found.dtype == np.float32
    for rows, expected in zip(found, exported_candidates(folded, images), strict=True):
        assert_same_rows(rows, expected, pixels=0.01, score=0.005)


def test_uint8_inputs_are_taken_as_they_are() -> None:
    folded = fold(model(dtype=TensorProto.UINT8, layout="NHWC"))
    assert "less 0 (assumed), over 1 (assumed)" in folded.summary["pixels"]


def dynamic_size() -> onnx.ModelProto:
    made = model()
    dims = made.graph.input[0].type.tensor_type.shape.dim
    dims[2].dim_param, dims[3].dim_param = "height", "width"
    return made


def test_a_size_is_chosen_for_models_that_take_any() -> None:
    with pytest.raises(
        DetectorImportError, match=r"images of any size .*: choose with --input-size"
    ):
        fold(dynamic_size())
    assert fold(dynamic_size(), ImportOptions(input_size_wh=(64, 64))).info.input_size_wh == (
        64,
        64,
    )
    with pytest.raises(DetectorImportError, match="takes images of 64x64 pixels, not 96x64"):
        fold(model(), ImportOptions(input_size_wh=(96, 64)))


def with_node(op: str, **attributes: Any) -> onnx.ModelProto:
    made = model()
    node = helper.make_node(op, ["output0"], ["more"], name="the_node", **attributes)
    made.graph.node.append(node)
    return made


def changed(change: str) -> onnx.ModelProto:
    made = model()
    if change == "opset":
        made.opset_import[0].version = 9
    elif change == "inputs":
        more = helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1, 3])
        made.graph.input.append(more)
    elif change == "channels":
        made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    elif change == "type":
        made.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    elif change == "rank":
        del made.graph.input[0].type.tensor_type.shape.dim[3]
    elif change == "task":
        helper.set_model_props(made, {"task": "pose"})
    return made


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (with_node("NonMaxSuppression"), r"suppresses overlaps itself \(node 'the_node'"),
        (with_node("EfficientNMS_TRT", domain="TRT"), "'the_node', EfficientNMS_TRT"),
        (changed("opset"), "opset 9: export it again in 11 or newer"),
        (changed("inputs"), r"wants scale FLOAT \[1, 3\] beside the image"),
        (changed("channels"), r"must have 3 channels; the model has images FLOAT \[N, 4, 64, 64\]"),
        (changed("type"), r"must be FLOAT, FLOAT16 or UINT8; the model has images DOUBLE"),
        (changed("rank"), r"one image input .* it has images FLOAT \[N, 3, 64\]"),
        (changed("task"), "for the task 'pose'"),
    ],
)
def test_what_cannot_be_imported_is_told(raw: onnx.ModelProto, message: str) -> None:
    with pytest.raises(DetectorImportError, match=message):
        prepare(raw)


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    path = tmp_path / "raw.onnx"
    onnx.save(model(), path, save_as_external_data=True, size_threshold=0, location="weights")
    assert fold(load(path)).model.SerializeToString() == fold(model()).model.SerializeToString()
    (tmp_path / "weights").unlink()
    with pytest.raises(DetectorImportError, match="cannot be read as an ONNX model"):
        load(path)


@pytest.mark.parametrize(
    ("source", "grown", "target", "fixed", "expected"),
    [
        ([1, 85, 52, 52], [13, 85, 52, 52], [1, 85, 2704], 1, [-1, 85, 2704]),
        ([8, 10, 32], [104, 10, 32], [1, 8, 10, 32], 1, [-1, 8, 10, 32]),  # heads of attention
        ([1, 8, 10, 32], [13, 8, 10, 32], [8, 10, 32], 1, [-1, 10, 32]),
        ([10, 1, 256], [10, 13, 256], [10, 8, 32], 1, [10, -1, 32]),
        ([4, 10], [52, 10], [2, 2, 10], 2, [-1, 2, 10]),
        ([1, 10], [13, 10], [1, 10], 1, [-1, 10]),
        ([10, 2], [10, 26], [4, 5], 2, None),  # the batch is cut in the middle
        ([1, 1], [13, 13], [1], 1, None),
    ],
)
def test_the_batch_is_found_in_a_shape(
    source: list[int], grown: list[int], target: list[int], fixed: int, expected: list[int] | None
) -> None:
    assert batch.batch_free_shape(source, grown, target, fixed) == expected


def attention() -> onnx.ModelProto:
    """Heads split and joined, a Resize to sizes, and sizes computed from shapes."""
    constants: dict[str, Array] = {
        "sizes": np.array([1, 6, 40, 40]), "tokens": np.array([1, 6, 1600]),
        "heads": np.array([1, 1600, 2, 3]), "joined": np.array([2, 1600, 3]),
        "back": np.array([1, 2, 1600, 3]), "rows": np.array([1, 1600, 6]),
        "weight": np.random.default_rng(0).standard_normal((6, 3, 3, 3)).astype(np.float32),
        "mix": np.random.default_rng(1).standard_normal((6, 9)).astype(np.float32),
        "zero": np.array([0]), "n": np.array([CELLS]), "one": np.array([1]),
    }  # fmt: skip
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Conv", ["image", "weight"], "features", {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("Resize", ["features", "", "", "sizes"], "resized", {"mode": "nearest"}),
        ("Reshape", ["resized", "tokens"], "flat", {}),
        ("Transpose", ["flat"], "tokens_last", {"perm": [0, 2, 1]}),
        ("Reshape", ["tokens_last", "heads"], "split", {}),
        ("Transpose", ["split"], "by_head", {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["by_head", "joined"], "together", {}),
        ("Tanh", ["together"], "active", {}),
        ("Reshape", ["active", "back"], "apart", {}),
        ("Transpose", ["apart"], "by_token", {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["by_token", "rows"], "joint", {}),
        ("Slice", ["joint", "zero", "n", "one"], "some", {}),
        ("MatMul", ["some", "mix"], "mixed", {}),
        ("Transpose", ["mixed"], "output0", {"perm": [0, 2, 1]}),
    ]
    made = [helper.make_node(o, i, [n], f"node_{n}", **a) for o, i, n, a in nodes]
    graph = helper.make_graph(
        made, "raw",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 9, CELLS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_fixed_batch_is_made_dynamic_and_proven() -> None:
    raw = prepare(attention())
    dynamic = batch.make_dynamic(raw)
    assert batch.prove(raw, dynamic) <= 1e-6
    images = np.random.default_rng(2).uniform(size=(5, 3, 64, 64)).astype(np.float32)
    (together,) = run(dynamic, "image", images).values()
    alone = [run(attention(), "image", image[None])["output0"][0] for image in images]
    assert together == pytest.approx(np.stack(alone), abs=1e-5)


def last_node(raw: onnx.ModelProto, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    raw.graph.node[-1].output[0] = "before"
    raw.graph.node.extend(nodes)
    return raw


def test_the_node_that_mixes_images_is_named() -> None:
    total = helper.make_node("ReduceSum", ["before"], ["total"], name="mixes", keepdims=1)
    add = helper.make_node("Add", ["before", "total"], ["output0"], name="late")
    raw = prepare(last_node(model(batch=1), total, add))
    with pytest.raises(DetectorImportError, match=r"from node 'mixes' \(ReduceSum\) on"):
        batch.prove(raw, batch.make_dynamic(raw))


def test_the_node_that_takes_one_image_alone_is_named() -> None:
    raw = model(batch=1)
    row = np.zeros((1, 1, CELLS), np.float32)
    raw.graph.initializer.append(numpy_helper.from_array(row, "row"))
    joined = helper.make_node("Concat", ["before", "row"], ["output0"], name="joins", axis=1)
    raw = last_node(raw, joined)
    made = prepare(raw)
    with pytest.raises(DetectorImportError, match=r"a batch of 1 .* cannot be .*'?joins"):
        batch.prove(made, batch.make_dynamic(made))


def test_another_model_is_not_taken_for_the_exported_one(tmp_path: Path) -> None:
    folded = fold(model(spread=50))
    path = tmp_path / "model.onnx"
    onnx.save(folded.model, path)
    verify(path, folded)
    onnx.save(fold(model(spread=50), ImportOptions(order="bgr")).model, path)
    with pytest.raises(DetectorImportError, match="not those of the model as it was exported"):
        verify(path, folded)


def with_classes(count: int, names: tuple[str, ...] | None = None) -> onnx.ModelProto:
    head = np.random.default_rng(1).uniform(0.1, 0.9, (4 + count, CELLS))
    return raw_model({"output0": head}, spread=SPREAD, names=names)


BACKWARDS = tuple(reversed(range(80)))
OF_91 = tuple(coco.LABELS[coco.CATEGORY_IDS.index(i)] for i in (90, 1, 13))


@pytest.mark.parametrize(
    ("raw", "classes", "labels", "expected", "said"),
    [
        (with_classes(2, ("cat", "dog")), (1, 0), None, ("dog", "cat"), "named in the file"),
        (with_classes(80), BACKWARDS, None, coco.LABELS[::-1], "COCO's, assumed"),
        (with_classes(80, coco.LABELS), BACKWARDS, None, coco.LABELS[::-1], "named in the file"),
        (with_classes(91), (90, 1, 13), None, OF_91, "COCO's, assumed"),
        (with_classes(90), (89, 0, 12), None, OF_91, "COCO's, assumed"),
        (with_classes(91), (0, 12, 1), None, ("class 0", "class 12", "person"), "COCO's, assumed"),
        (with_classes(3, ("a", "b", "c")), (2, 0), ("x", "y"), ("x", "y"), "for those kept"),
        (with_classes(2), (1, 0), ("x", "y"), ("y", "x"), "for all classes in the model's order"),
        (with_classes(3), (2, 0), ("x", "y", "z"), ("z", "x"), "as given"),
    ],
)
def test_names_follow_the_classes_that_are_kept(
    raw: onnx.ModelProto, classes: tuple[int, ...], labels: tuple[str, ...] | None,
    expected: tuple[str, ...], said: str,
) -> None:  # fmt: skip
    folded = fold(raw, ImportOptions(family="yolov8", classes=classes, labels=labels))
    assert folded.info.labels == expected
    assert said in folded.summary["classes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "0,7-5"], "7-5 ends before it begins"),
        (["--std", "-1"], "only by numbers over 0 can be divided"),
        (["--std", "1,0,1"], "only by numbers over 0 can be divided"),
        (["--mean", "1,2"], "is not one number, or three"),
    ],
)
def test_what_cannot_be_meant_is_wrong_use(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        import_detector.main(["raw.onnx", "-o", "model.onnx", *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_an_interrupted_import_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_detector, "verify", interrupt)
    raw, out = tmp_path / "raw.onnx", tmp_path / "model.onnx"
    onnx.save(model(), raw)
    assert import_detector.main([str(raw), "-o", str(out)]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"
    assert list(tmp_path.iterdir()) == [raw]


@pytest.mark.parametrize("suffix", [".json", ".txt", ".onnxtxt"])
def test_the_name_of_a_file_does_not_say_how_it_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"raw{suffix}"
    path.write_bytes(model().SerializeToString())
    assert load(path) == model()
    path.write_text("no model")
    with pytest.raises(DetectorImportError, match="cannot be read as an ONNX model"):
        load(path)


def test_what_has_been_imported_already_is_told(tmp_path: Path) -> None:
    path = write_detector(tmp_path / "model.onnx", rows=np.zeros((300, 6), np.float32))
    with pytest.raises(DetectorImportError, match="imported already"):
        import_detector.import_detector(path, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
