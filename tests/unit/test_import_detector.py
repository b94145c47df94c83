"""The fold of a raw SSD, on a small random one and against plain NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import coco
import import_detector
from contract import CANDIDATES, DetectorInfo
from families.graph import DetectorImportError
from import_detector import ImportOptions

Array = npt.NDArray[Any]
SIZE_HW = (20, 24)
LEVELS = ((10, 12, 3), (5, 6, 2))  # height, width, anchors a cell
ANCHORS = sum(height * width * count for height, width, count in LEVELS)  # 420
ROOT = Path(__file__).resolve().parents[2]


def raw_ssd(columns: int = 91, seed: int = 0, squeeze: bool = True) -> onnx.ModelProto:
    """A raw SSD of two levels with random weights, as the importer writes them."""
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {}

    def add(op: str, name: str, *inputs: str | Array, **attributes: Any) -> str:
        names = []
        for index, item in enumerate(inputs):
            names.append(item if isinstance(item, str) else f"{name}/{index}")
            if not isinstance(item, str):
                constants[names[-1]] = item
        nodes.append(helper.make_node(op, names, [name], name=name, **attributes))
        return name

    def conv(name: str, data: str, shape: tuple[int, ...], scale: float, **attributes: Any) -> str:
        weight = (rng.standard_normal(shape) * scale).astype(np.float32)
        return add("Conv", name, data, weight, np.zeros(shape[0], np.float32), **attributes)

    feature = "image"
    parts: dict[str, list[str]] = {"box_encodings": [], "class_logits": []}
    for level, (_, _, count) in enumerate(LEVELS):
        channels = 3 if level == 0 else 8
        feature = conv(  # SAME padding at stride 2: one row and column behind
            f"f{level}", feature, (8, channels, 3, 3), 0.3, strides=[2, 2],
            pads=[0, 0, 1, 1], kernel_shape=[3, 3],
        )  # fmt: skip
        for name, width in (("box_encodings", 4), ("class_logits", columns)):
            head = conv(f"{name}{level}", feature, (count * width, 8, 1, 1), 0.4)
            nhwc = add("Transpose", f"{head}/nhwc", head, perm=[0, 2, 3, 1])
            shape = [0, -1, 1, 4] if width == 4 and squeeze else [0, -1, width]
            parts[name].append(add("Reshape", f"{head}/rows", nhwc, np.array(shape, np.int64)))
    boxes = add("Concat", "boxes/all", *parts["box_encodings"], axis=1)
    if squeeze:
        boxes = add("Squeeze", "boxes/squeezed", boxes, np.array([2], np.int64))
    add("Identity", "box_encodings", boxes)
    add("Identity", "class_logits", add("Concat", "logits/all", *parts["class_logits"], axis=1))
    corners = np.sort(rng.uniform(size=(1, ANCHORS, 2, 2)), axis=2).astype(np.float32)
    add("Identity", "anchors", corners.reshape(1, ANCHORS, 4))

    def info(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    outputs = [
        info("box_encodings", "N", ANCHORS, 4), info("class_logits", "N", ANCHORS, columns),
        info("anchors", 1, ANCHORS, 4),
    ]  # fmt: skip
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "raw", [info("image", "N", 3, *SIZE_HW)], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, name: str, data: Array) -> list[Array]:
    session = ort.InferenceSession(model.SerializeToString())
    return [np.asarray(output) for output in session.run(None, {name: data})]


def folded_ssd(raw: onnx.ModelProto, source: str = "") -> onnx.ModelProto:
    return import_detector.fold(raw, ImportOptions(family="ssd", source=source)).model


def brute_force(raw: onnx.ModelProto, images: Array, columns: tuple[int, ...]) -> Array:
    """Candidates by decoding every anchor and sorting every (anchor, class) pair."""
    normalised = (images.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
    encodings, logits, anchors = run(raw, "image", normalised.astype(np.float32))
    height, width = SIZE_HW
    y1, x1, y2, x2 = (anchors[0] * [height, width, height, width]).T
    ty, tx, th, tw = encodings.transpose(2, 0, 1)
    center_y, center_x = ty / 10 * (y2 - y1) + (y1 + y2) / 2, tx / 10 * (x2 - x1) + (x1 + x2) / 2
    half_h, half_w = np.exp(th / 5) * (y2 - y1) / 2, np.exp(tw / 5) * (x2 - x1) / 2
    corners = [center_x - half_w, center_y - half_h, center_x + half_w, center_y + half_h]
    boxes = np.stack(corners, axis=2)
    scores = 1 / (1 + np.exp(-logits[..., list(columns)]))
    result = []
    for image_boxes, image_scores in zip(boxes, scores, strict=True):
        order = np.argsort(-image_scores, axis=None, kind="stable")[:CANDIDATES]
        anchor, class_id = np.divmod(order, len(columns))
        chosen = image_scores[anchor, class_id]
        result.append(np.column_stack([image_boxes[anchor], chosen, class_id]))
    return np.stack(result)


def random_images(count: int) -> Array:
    return np.random.default_rng(1).integers(0, 256, (count, *SIZE_HW, 3), np.uint8)


@pytest.mark.parametrize("squeeze", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("columns", "kept"), [(91, coco.CATEGORY_IDS), (6, (1, 2, 3, 4, 5)), (2, (1,))]
)
def test_candidates_are_the_exact_best_pairs(
    columns: int, kept: tuple[int, ...], batch: int, squeeze: bool
) -> None:
    raw = raw_ssd(columns, seed=batch, squeeze=squeeze)
    images = random_images(batch)
    (candidates,) = run(folded_ssd(raw), "images", images)
    expected = brute_force(raw, images, kept)
    assert candidates.shape == (batch, CANDIDATES, 6)
    assert candidates.dtype == np.float32
    assert candidates[..., 4] == pytest.approx(expected[..., 4], abs=1e-5)
    for rows, reference in zip(candidates, expected, strict=True):
        # Almost equal scores may change places; every row but the last few must be there.
        distances = np.abs(rows[:, None] - reference[None]).max(axis=2).min(axis=1)
        assert distances[: CANDIDATES - 5] == pytest.approx(0, abs=1e-3)


def test_one_anchor_may_have_several_classes() -> None:
    (candidates,) = run(folded_ssd(raw_ssd()), "images", random_images(1))
    boxes, counts = np.unique(candidates[0, :, :4], axis=0, return_counts=True)
    assert counts.max() > 1
    assert len(boxes) < CANDIDATES


def test_equal_scores_give_distinct_pairs() -> None:
    raw = raw_ssd()
    for tensor in raw.graph.initializer:
        weights = tensor.data_type == TensorProto.FLOAT
        if weights and "/1" in tensor.name and tensor.name.startswith("class_logits"):
            zeros = np.zeros_like(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(zeros, tensor.name))
    (candidates,) = run(folded_ssd(raw), "images", random_images(1))
    assert candidates[0, :, 4] == pytest.approx(0.5)
    assert len(np.unique(candidates[0], axis=0)) == CANDIDATES


def test_the_model_serves_the_contract() -> None:
    model = folded_ssd(raw_ssd(), "package@1.2.3")
    (images,), (candidates,) = model.graph.input, model.graph.output
    assert (images.name, candidates.name) == ("images", "candidates")
    assert images.type.tensor_type.elem_type == TensorProto.UINT8
    shape = images.type.tensor_type.shape.dim
    assert shape[0].dim_param == "N"
    assert [dim.dim_value for dim in shape[1:]] == [*SIZE_HW, 3]
    (reader,) = (node for node in model.graph.node if "images" in node.input)
    assert reader.op_type == "Cast"  # TensorRT takes UINT8 inputs that are cast at once
    assert DetectorInfo.of(model) == DetectorInfo(
        family="ssd", source="package@1.2.3", input_size_wh=(24, 20), resize="stretch",
        labels=coco.LABELS,
    )  # fmt: skip


def test_the_fold_is_deterministic_and_leaves_the_raw_model_alone() -> None:
    raw = raw_ssd()
    before = raw.SerializeToString(deterministic=True)
    first, second = (folded_ssd(raw) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(
        deterministic=True
    )
    assert raw.SerializeToString(deterministic=True) == before


def test_coco_columns_are_the_80_labels() -> None:
    labels = (ROOT / "model_repository/detector/labels.txt").read_text().splitlines()
    assert len(labels) == len(set(labels)) == len(coco.CATEGORY_IDS) == 80
    ids = dict(zip(labels, coco.CATEGORY_IDS, strict=True))
    # Ids around the gaps, from COCO's list of categories.
    assert ids["person"] == 1
    assert (ids["fire hydrant"], ids["stop sign"]) == (11, 13)
    assert (ids["dining table"], ids["toilet"], ids["tv"]) == (67, 70, 72)
    assert ids["toothbrush"] == 90


def without_output(name: str) -> onnx.ModelProto:
    raw = raw_ssd()
    kept = [output for output in raw.graph.output if output.name != name]
    del raw.graph.output[:]
    raw.graph.output.extend(kept)
    return raw


def with_softmax() -> onnx.ModelProto:
    raw = raw_ssd()
    raw.graph.node[-2].op_type = "Softmax"  # what makes `class_logits`
    return raw


@pytest.mark.parametrize(
    ("raw", "family", "message"),
    [
        (raw_ssd(), "yolo0", r"unknown family 'yolo0': choose from \['detr', .*'yolox'\]"),
        (without_output("anchors"), "ssd", "three outputs box_encodings"),
        (without_output("class_logits"), None, "this fits no family"),
        (with_softmax(), "ssd", "'class_logits' has probabilities: export the logits"),
    ],
)
def test_other_graphs_are_refused(raw: onnx.ModelProto, family: str | None, message: str) -> None:
    with pytest.raises(DetectorImportError, match=message):
        import_detector.fold(raw, ImportOptions(family=family))


def test_heads_and_images_that_are_read_twice_are_left_alone() -> None:
    raw = raw_ssd()
    for source in ("image", "box_encodings0", "class_logits1"):
        name = f"{source}/again"
        raw.graph.node.append(helper.make_node("Neg", [source], [name], name))
    plain, general = folded_ssd(raw_ssd()), folded_ssd(raw)
    assert len(general.graph.node) > len(plain.graph.node)
    images = random_images(2)
    (expected,), (found,) = run(plain, "images", images), run(general, "images", images)
    assert found == pytest.approx(expected, abs=1e-3)


def unsorted_model() -> onnx.ModelProto:
    model = folded_ssd(raw_ssd())
    model.graph.node[-1].output[0] = "descending"
    model.graph.node.append(helper.make_node("Neg", ["descending"], ["candidates"], "ascending"))
    return model


def test_the_command_folds_writes_and_verifies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(raw_ssd(), tmp_path / "raw.onnx")
    out = tmp_path / "new" / "model.onnx"
    assert import_detector.main([str(tmp_path / "raw.onnx"), "-o", str(out)]) == 0
    written = capsys.readouterr().out
    assert "wrote" in written
    assert "ssd, recognised (encodings, logits and 420 anchors" in written
    assert "stretch (assumed)" in written
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"]


def test_the_command_stores_what_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(raw_ssd(6), tmp_path / "raw.onnx")
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\ndog\neel\n")
    options = [
        *("--family", "ssd", "--source", "here", "--classes", "4,0-1", "--input-order", "bgr"),
        *("--mean", "1,2,3", "--std", "255", "--resize", "letterbox", "--anchor", "top-left"),
        *("--pad-value", "7", "--iou-threshold", "0.4"),
    ]
    out = tmp_path / "model.onnx"
    arguments = [str(tmp_path / "raw.onnx"), "-o", str(out), *options]
    assert import_detector.main([*arguments, "--labels", str(tmp_path / "labels.txt")]) == 0
    assert DetectorInfo.of(onnx.load(out)) == DetectorInfo(
        family="ssd", source="here", input_size_wh=(24, 20), labels=("eel", "ant", "bee"),
        resize="letterbox", anchor="top-left", pad_value=7, iou_threshold=0.4,
    )  # fmt: skip
    assert "1,2,3, over 255" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--classes", "3,x", "numbers and ranges"), ("--classes", "3,3", "one twice"),
        ("--mean", "1,2", "one number, or three"), ("--std", "0", "numbers over 0"),
        ("--std", "nan", "one number, or three"), ("--pad-value", "256", "from 0 to 255"),
        ("--iou-threshold", "x", "from 0 to 1"), ("--input-size", "0x5", "no size"),
        ("--labels", "missing.txt", "cannot be read"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant_are_usage_errors(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        import_detector.main(["raw.onnx", "-o", "model.onnx", option, value])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"\x00not onnx\xff"])
def test_the_command_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    raw = tmp_path / "raw.onnx"
    if content is not None:
        raw.write_bytes(content)
    assert import_detector.main([str(raw), "-o", str(tmp_path / "model.onnx")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "model.onnx").exists()


def test_a_model_that_breaks_the_contract_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(DetectorImportError, match="not finite and sorted"):
        import_detector.save(unsorted_model(), path, import_detector.verify)
    with pytest.raises(DetectorImportError, match="does not run in ONNX Runtime"):
        import_detector.save(onnx.ModelProto(), path, import_detector.verify)
    assert list(tmp_path.iterdir()) == []
