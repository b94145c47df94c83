"""Every family's outputs against plain NumPy, on small random models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import coco
from contract import CANDIDATES
from families import DetectorImportError
from families.folding import Folded, ImportOptions, fold
from tests.family_models import (
    Array,
    assert_same_rows,
    best_pairs,
    corners,
    noise_images,
    raw_model,
    run,
    sigmoid,
)  # fmt: skip

CELLS = 8 * 8 + 4 * 4 + 2 * 2  # of strides 8, 16, 32 in 64 x 64
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
UNIT = ([0.0], [255.0])


def rows(count: int, width: int, low: float = 0.1, high: float = 0.9, seed: int = 1) -> Array:
    return np.random.default_rng(seed).uniform(low, high, (count, width))


def cell_centers() -> Array:
    parts = []
    for stride in (8, 16, 32):
        y, x = np.divmod(np.arange((64 // stride) ** 2), 64 // stride)
        parts.append(np.column_stack([x, y, np.full_like(x, stride)]))
    return np.asarray(np.concatenate(parts), float)


def check(
    raw: onnx.ModelProto,
    expected: Callable[[dict[str, Array], int], Array],
    recognised: str,
    *,
    bgr: bool = False,
    normalise: tuple[Any, Any] = UNIT,
    **given: Any,
) -> Folded:
    """Fold, and compare with `expected` of the raw outputs and the image's index."""
    folded = fold(raw, ImportOptions(**given))
    assert folded.info.family == recognised
    images = noise_images(3)
    (found,) = run(folded.model, "images", images).values()
    assert found.shape == (3, CANDIDATES, 6)
    mean, std = (np.array(value) for value in normalise)
    for index, image in enumerate(images):
        pixels = ((image[..., ::-1] if bgr else image) - mean) / std
        outputs = run(raw, "images", pixels.transpose(2, 0, 1)[None].astype(np.float32))
        assert_same_rows(found[index], expected(outputs, index))
    return folded


def yolox_rows(head: Array, decoded: bool) -> Array:
    cells = cell_centers()
    boxes = head[:, :4].astype(float)
    if not decoded:
        stride = cells[:, 2:]
        boxes = np.hstack([(boxes[:, :2] + cells[:, :2]) * stride, np.exp(boxes[:, 2:]) * stride])
    return best_pairs(corners(boxes), head[:, 4:5] * head[:, 5:])


@pytest.mark.parametrize("classes", [1, 3, 20])
def test_yolox(classes: int) -> None:
    raw = raw_model({"output": rows(CELLS, 5 + classes)}, batch=1, spread=0.1)
    folded = check(
        raw, lambda out, _: yolox_rows(out["output"][0], False), "yolox", bgr=True,
        normalise=(0, 1),
    )  # fmt: skip
    assert "not decoded" in folded.summary["family"]
    info = folded.info
    assert (info.resize, info.anchor, info.pad_value) == ("letterbox", "top-left", 114)
    assert info.iou_threshold == 0.65
    assert info.labels == tuple(f"class {index}" for index in range(classes))


def test_yolox_decoded_in_the_graph() -> None:
    cells = cell_centers()
    head = np.hstack([(cells[:, :2] + 0.5) * cells[:, 2:], rows(CELLS, 2, 4, 30), rows(CELLS, 4)])
    raw = raw_model({"output": head}, spread=0.1)
    folded = check(
        raw, lambda out, _: yolox_rows(out["output"][0], True), "yolox", bgr=True,
        normalise=(0, 1),
    )  # fmt: skip
    assert "boxes decoded" in folded.summary["family"]


def test_yolov6_is_told_by_its_objectness() -> None:
    cells = cell_centers()
    head = np.hstack([(cells[:, :2] + 0.5) * cells[:, 2:], rows(CELLS, 2, 4, 30), rows(CELLS, 4)])
    head[:, 4] = 1
    raw = raw_model({"output": head}, spread=0)
    check(raw, lambda out, _: yolox_rows(out["output"][0], True), "yolox")


@pytest.mark.parametrize("classes", [1, 2, 20])
def test_yolov5(classes: int) -> None:
    raw = raw_model({"output0": rows(3 * CELLS, 5 + classes)}, spread=0.1)

    def expected(out: dict[str, Array], _: int) -> Array:
        head = out["output0"][0].astype(float)
        return best_pairs(corners(head[:, :4]), head[:, 4:5] * head[:, 5:])

    folded = check(raw, expected, "yolov5")
    assert (folded.info.anchor, folded.info.iou_threshold) == ("center", 0.45)


@pytest.mark.parametrize("classes", [1, 2, 20])
def test_yolov8(classes: int) -> None:
    raw = raw_model({"output0": rows(4 + classes, CELLS)}, batch=1, spread=0.1)

    def expected(out: dict[str, Array], _: int) -> Array:
        head = out["output0"][0].T.astype(float)
        return best_pairs(corners(head[:, :4]), head[:, 4:])

    assert check(raw, expected, "yolov8").info.iou_threshold == 0.7


def test_classes_can_be_chosen_and_ordered() -> None:
    raw = raw_model({"output0": rows(4 + 6, CELLS)}, names=("a", "b", "c", "d", "e", "f"))

    def expected(out: dict[str, Array], _: int) -> Array:
        head = out["output0"][0].T.astype(float)
        return best_pairs(corners(head[:, :4]), head[:, [4 + 5, 4 + 0, 4 + 2]])

    assert check(raw, expected, "yolov8", classes=(5, 0, 2)).info.labels == ("f", "a", "c")


def pixel_boxes(boxes: Array) -> Array:
    return corners(boxes.astype(float)) * 64


@pytest.mark.parametrize("queries", [20, 400])
@pytest.mark.parametrize(("classes", "kept"), [(80, None), (91, coco.CATEGORY_IDS), (5, None)])
def test_rtdetr(queries: int, classes: int, kept: tuple[int, ...] | None) -> None:
    logits, boxes = rows(queries, classes, -6, 2), rows(queries, 4, 0.2, 0.8)
    raw = raw_model({"logits": logits, "pred_boxes": boxes}, spread=0.05)

    def expected(out: dict[str, Array], _: int) -> Array:
        scores = sigmoid(out["logits"][0])
        columns = range(classes) if kept is None else kept
        return best_pairs(pixel_boxes(out["pred_boxes"][0]), scores[:, list(columns)])

    family = "rtdetr" if classes == 5 else None
    normalise = IMAGENET if classes == 91 else UNIT
    folded = check(raw, expected, "rtdetr", normalise=normalise, family=family)
    assert (folded.info.resize, folded.info.iou_threshold) == ("stretch", 1.0)
    assert len(folded.info.labels) == min(classes, 80)


def test_rtdetr_in_one_output() -> None:
    raw = raw_model({"output0": rows(30, 4 + 7, 0.2, 0.8)}, spread=0.01)

    def expected(out: dict[str, Array], _: int) -> Array:
        return best_pairs(pixel_boxes(out["output0"][0, :, :4]), out["output0"][0, :, 4:])

    assert "one output" in check(raw, expected, "rtdetr").summary["family"]


@pytest.mark.parametrize("classes", [91, 4])
def test_detr_has_one_class_a_query(classes: int) -> None:
    logits, boxes = rows(25, classes + 1, -3, 3), rows(25, 4, 0.2, 0.8)
    raw = raw_model({"logits": logits, "pred_boxes": boxes}, spread=0.05)
    columns = list(coco.CATEGORY_IDS if classes == 91 else range(classes))

    def expected(out: dict[str, Array], _: int) -> Array:
        powers = np.exp(out["logits"][0].astype(float))
        scores = (powers / powers.sum(axis=1, keepdims=True))[:, columns]
        best = np.where(scores == scores.max(axis=1, keepdims=True), scores, 0)
        found = best_pairs(pixel_boxes(out["pred_boxes"][0]), best, 25)
        return np.concatenate([found, np.zeros((CANDIDATES - 25, 6))])

    labels = None if classes == 91 else ("a", "b", "c", "d")  # which settles the doubt
    check(raw, expected, "detr", normalise=IMAGENET, labels=labels)


@pytest.mark.parametrize("count", [40, 300, 500])
@pytest.mark.parametrize("classes", [None, (7, 2)])
def test_end2end_rows_are_sorted_cut_and_filled(
    count: int, classes: tuple[int, ...] | None
) -> None:
    head = np.hstack([rows(count, 4, 0, 60), rows(count, 1), np.zeros((count, 1))])
    class_ids = np.random.default_rng(3).integers(0, 9, count)
    head[:, 5] = class_ids
    raw = raw_model({"output0": head}, spread=0)
    kept = list(range(9)) if classes is None else list(classes)
    scores = np.where(class_ids[:, None] == kept, head[:, 4:5], 0)
    expected = best_pairs(head[:, :4], scores, min(CANDIDATES, sum(np.isin(class_ids, kept))))
    expected = np.concatenate([expected, np.zeros((CANDIDATES - len(expected), 6))])
    folded = check(raw, lambda *_: expected, "end2end", classes=classes)
    assert folded.info.labels == ()
    assert folded.info.iou_threshold == 1.0


def test_end2end_in_three_outputs_and_the_size_it_asks_for() -> None:
    boxes, scores = rows(30, 4), rows(30, 1)
    raw = raw_model({"boxes": boxes, "flat": scores}, spread=0.01)
    graph = raw.graph
    size = onnx.helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, ["N", 2])
    graph.input.append(size)
    made = [
        ("Cast", ["orig_target_sizes"], "wh", {"to": TensorProto.FLOAT}),
        ("Concat", ["wh", "wh"], "whwh", {"axis": 1}),
        ("Unsqueeze", ["whwh", "one"], "whwh1", {}),
        ("Mul", ["boxes", "whwh1"], "scaled", {}),
        ("Squeeze", ["flat", "two"], "scores", {}),
        ("Cast", ["scores"], "labels", {"to": TensorProto.INT64}),
    ]
    for op, inputs, name, attributes in made:
        graph.node.append(onnx.helper.make_node(op, inputs, [name], f"node_{name}", **attributes))
    for name, axis in (("one", 1), ("two", 2)):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([axis]), name))
    del graph.output[:]
    for name, kind, rank in (("labels", 7, 2), ("scaled", 1, 3), ("scores", 1, 2)):
        graph.output.append(onnx.helper.make_tensor_value_info(name, kind, [None] * rank))
    folded = fold(raw)
    assert folded.info.resize == "stretch"
    (found,) = run(folded.model, "images", noise_images(2)).values()
    assert found.shape == (2, CANDIDATES, 6)
    assert 20 < found[:, :30, :4].max() <= 70  # pixels of 64
    assert (found[:, 30:] == 0).all()


def ssd_raw(anchors: Array, classes: int, names: tuple[str, str]) -> onnx.ModelProto:
    count = len(anchors)
    outputs = {
        names[0]: rows(count, 4, -1, 1), names[1]: rows(count, classes + 1, -4, 2),
        "anchors": anchors,
    }  # fmt: skip
    return raw_model(outputs, constant=("anchors",), spread=0.05)


def ssd_boxes(encodings: Array, anchors: Array) -> Array:
    """Box coder of both, on tx ty tw th and x1 y1 x2 y2."""
    center, size = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    moved = encodings[:, :2] / 10 * size + center
    return corners(np.hstack([moved, np.exp(encodings[:, 2:] / 5) * size]))


@pytest.mark.parametrize(("classes", "kept"), [(90, coco.CATEGORY_IDS), (3, (1, 2, 3))])
def test_ssd_without_the_importers_heads(classes: int, kept: tuple[int, ...]) -> None:
    low = rows(350, 2, 0, 0.5)
    anchors = np.hstack([low, low + rows(350, 2, 0.1, 0.4, seed=2)])
    raw = ssd_raw(anchors, classes, ("box_encodings", "class_logits"))

    def expected(out: dict[str, Array], _: int) -> Array:
        xywh = out["box_encodings"][0].astype(float)[:, [1, 0, 3, 2]]
        boxes = ssd_boxes(xywh, anchors[:, [1, 0, 3, 2]] * 64)
        return best_pairs(boxes, sigmoid(out["class_logits"][0])[:, list(kept)])

    folded = check(raw, expected, "ssd", normalise=([127.5], [127.5]))
    assert folded.info.resize == "stretch"


def test_torchvision_ssd() -> None:
    low = rows(350, 2, 0, 40)
    anchors = np.hstack([low, low + rows(350, 2, 5, 30, seed=2)])
    raw = ssd_raw(anchors, 4, ("bbox_regression", "cls_logits"))

    def expected(out: dict[str, Array], _: int) -> Array:
        boxes = ssd_boxes(out["bbox_regression"][0].astype(float), anchors).clip(0, 64)
        powers = np.exp(out["cls_logits"][0].astype(float))
        return best_pairs(boxes, (powers / powers.sum(axis=1, keepdims=True))[:, 1:])

    folded = check(raw, expected, "ssd-torchvision", normalise=([127.5], [127.5]))
    assert folded.info.iou_threshold == 0.55


@pytest.mark.parametrize(
    ("outputs", "given", "message"),
    [
        ({"a": rows(10, 9)}, {}, r"a float32 \[N, 10, 9\].*fits no family(.|\n)*yolov8 .*4\+C, A"),
        ({"a": rows(CELLS, 9)}, {"family": "yolov8"}, "What fits"),
        ({"a": rows(CELLS, 9)}, {"family": "ssd"}, "three outputs box_encodings"),
        ({"a": rows(9, CELLS)}, {"family": "nonsense"}, "unknown family 'nonsense': choose from"),
        (
            {"logits": rows(20, 7, -9, 1), "pred_boxes": rows(20, 4)}, {},
            r"more than one family fits(.|\n)*detr .*6 classes and no-object(.|\n)*rtdetr",
        ),
        ({"a": rows(9, CELLS)}, {"labels": ("x",)}, "1 labels .* the model has 5 classes"),
        ({"a": rows(9, CELLS)}, {"classes": (5,)}, "classes 0 to 4"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(
    outputs: dict[str, Array], given: dict[str, Any], message: str
) -> None:
    # Values over one: no output may pass for probabilities or normalised boxes.
    scale = 1 if len(outputs) == 2 else 3
    raw = raw_model({name: value * scale for name, value in outputs.items()}, spread=0.01)
    with pytest.raises(DetectorImportError, match=message):
        fold(raw, ImportOptions(**given))
