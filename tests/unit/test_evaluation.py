"""The metrics against a hand-made example and an implementation of its own; failures; gates."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from detection_client import InvalidInputError, ServerUnavailableError
from detserve.decoding import ImageError
from detserve.detections import Detections
from evaluation import (
    Dataset,
    Evaluation,
    EvaluationError,
    EvaluationSettings,
    LabelledImage,
    evaluate,
    evaluate_file,
    load_dataset,
)
from evaluation.dataset import Objects
from tests.labelled_images import (
    as_coco,
    write_coco,
    write_constant_detector,
    write_images,
    write_yolo,
)

SHARED = Path(__file__).resolve().parents[3] / "shared"
DEFAULT_MODEL = Path(__file__).resolve().parents[2] / "build/models/coco-ssd/model.onnx"

Found = Sequence[tuple[float, int, Sequence[float]]]  # score, class, box


def scene(tmp_path: Path, *images: Sequence[tuple[int, float, float, float, float]]) -> Dataset:
    names = {f"{number:03}": objects for number, objects in enumerate(images)}
    return load_dataset(write_yolo(tmp_path, names))


def detections(found: Found) -> Detections:
    rows = sorted(found, key=lambda row: -row[0])
    return Detections(
        np.array([row[2] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[0] for row in rows], np.float32),
        np.array([row[1] for row in rows], np.int32),
    )


def answering(dataset: Dataset, found: Sequence[Found]) -> Callable[[bytes], Detections]:
    """A detector that knows each image by its bytes."""
    answers = {}
    for image, rows in zip(dataset.images, found, strict=True):
        image.path.write_bytes(image.path.read_bytes() + image.path.name.encode())
        answers[image.path.read_bytes()] = detections(rows)
    return answers.__getitem__


def test_a_hand_made_example(tmp_path: Path) -> None:
    # By score: found, nothing there, found. Precision 1 up to a recall of 0.5 (51 of COCO's 101
    # recalls), then 2/3 (50 of them).
    dataset = scene(tmp_path, [(0, 0, 0, 40, 40), (0, 50, 50, 90, 90)])
    found = [[(0.9, 0, (0, 0, 40, 40)), (0.8, 0, (0, 50, 40, 90)), (0.7, 0, (50, 50, 90, 90))]]
    result = evaluate(answering(dataset, found), dataset, ("thing",))
    wanted = (51 + 50 * 2 / 3) / 101
    assert (result.map, result.map50, result.map75) == pytest.approx((wanted,) * 3)
    assert result.recall == 1
    assert result.map_medium == pytest.approx(wanted)
    assert (result.map_small, result.map_large) == (None, None)
    (thing,) = result.per_class
    assert (thing.name, thing.objects, thing.images) == ("thing", 2, 1)
    assert (thing.map, thing.map50) == pytest.approx((wanted, wanted))
    assert (result.images, result.objects, result.detections) == (1, 2, 3)


def test_a_box_that_overlaps_by_two_thirds_counts_up_to_there(tmp_path: Path) -> None:
    dataset = scene(tmp_path, [(0, 0, 0, 90, 60)])
    found = [[(0.9, 0, (0, 0, 60, 60))]]  # IoU 2/3: at 0.50, 0.55, 0.60 and 0.65 of ten
    result = evaluate(answering(dataset, found), dataset, ())
    assert (result.map, result.map50, result.map75) == pytest.approx((0.4, 1, 0))


def simple_map(dataset: Dataset, found: Sequence[Found], iou_thresholds: Sequence[float]) -> float:
    """COCO's mean average precision in the plainest way: loops, one class and IoU at a time."""
    classes = sorted({int(c) for image in dataset.images for c in image.objects.classes})
    averages = []
    for threshold in iou_thresholds:
        for wanted in classes:
            hits: list[tuple[float, bool]] = []
            total = 0
            for image, rows in zip(dataset.images, found, strict=True):
                truth = image.objects.boxes_xyxy[image.objects.classes == wanted]
                total += len(truth)
                free = list(range(len(truth)))
                for score, label, box in sorted(rows, key=lambda row: -row[0]):
                    if label != wanted:
                        continue
                    best = max(free, key=lambda i: iou(box, truth[i]), default=None)
                    hit = best is not None and iou(box, truth[best]) >= threshold
                    if hit and best is not None:
                        free.remove(best)
                    hits.append((score, hit))
            hits.sort(key=lambda item: -item[0])
            correct = np.cumsum([hit for _, hit in hits])
            precision = correct / np.arange(1, len(hits) + 1)
            recall = correct / total
            points = [precision[recall >= r].max(initial=0) for r in np.linspace(0, 1, 101)]
            averages.append(float(np.mean(points)))
    return float(np.mean(averages))


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@pytest.mark.parametrize("seed", range(4))
def test_random_scenes_against_a_plain_implementation(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images: list[list[tuple[int, float, float, float, float]]] = []
    found: list[list[tuple[float, int, list[float]]]] = []
    for _ in range(12):
        corners = rng.uniform(0, 50, (rng.integers(0, 6), 2))
        sizes = rng.uniform(8, 40, corners.shape)
        labels = rng.integers(0, 3, len(corners))
        boxes = np.hstack([corners, corners + sizes])
        images.append(
            [
                (int(c), x1, y1, x2, y2)
                for c, (x1, y1, x2, y2) in zip(labels, boxes.tolist(), strict=True)
            ]
        )
        rows = []
        for label, box in zip(labels, boxes, strict=True):
            for _ in range(rng.integers(0, 3)):
                near = (box + rng.normal(0, 2.5, 4)).astype(np.float32).astype(float)
                other = int(rng.integers(0, 3))
                chosen = other if rng.uniform() < 0.2 else int(label)
                rows.append((float(np.float32(rng.uniform())), chosen, near.tolist()))
        found.append(rows)
    dataset = scene(tmp_path, *images)
    result = evaluate(answering(dataset, found), dataset, ("a", "b", "c"))
    assert result.map == pytest.approx(
        simple_map(dataset, found, [0.5 + i / 20 for i in range(10)])
    )
    assert result.map50 == pytest.approx(simple_map(dataset, found, [0.5]))
    assert 0.05 < result.map < 0.95  # neither trivial


def test_coco_and_yolo_labels_give_the_same_metrics(tmp_path: Path) -> None:
    labels = {
        "a": [(0, 3.0, 4.0, 30.0, 50.0), (1, 10.0, 10.0, 90.0, 90.0)],
        "b": [],
        "c": [(1, 5.0, 5.0, 20.0, 20.0)],
    }
    images = write_yolo(tmp_path, labels)
    categories = {0: (17, "cat"), 1: (18, "dog")}
    file = write_coco(tmp_path / "x.json", as_coco(labels, categories))
    answer = detections(
        [(0.9, 1, (10, 10, 85, 90)), (0.6, 0, (3, 4, 28, 50)), (0.5, 1, (5, 5, 21, 20))]
    )
    ours, theirs = (
        evaluate(lambda _: answer, load_dataset(images, source), ("cat", "dog"))
        for source in (None, file)
    )
    assert ours.map == pytest.approx(theirs.map)
    assert 0 < ours.map < 1
    for name in ("map50", "map75", "map_small", "map_medium", "map_large", "recall", "objects"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name)), name
    assert [c.name for c in ours.per_class] == [c.name for c in theirs.per_class] == ["cat", "dog"]
    assert [c.map for c in ours.per_class] == pytest.approx([c.map for c in theirs.per_class])


def test_detections_in_a_crowd_count_neither_way(tmp_path: Path) -> None:
    labels = {"a": [(0, 0.0, 0.0, 20.0, 20.0), (0, 30.0, 30.0, 96.0, 96.0)]}
    content = as_coco(labels, {0: (1, "person")})
    content["annotations"][1]["iscrowd"] = 1
    dataset = load_dataset(
        write_images(tmp_path / "i", labels), write_coco(tmp_path / "x.json", content)
    )
    answer = detections([(0.9, 0, (40, 40, 60, 60)), (0.8, 0, (0, 0, 20, 20))])
    result = evaluate(lambda _: answer, dataset, ("person",))
    assert result.map == pytest.approx(1)
    assert result.objects == 1


def test_only_a_hundred_detections_of_an_image_count(tmp_path: Path) -> None:
    dataset = scene(tmp_path, [(0, 0, 0, 40, 40)])
    wrong = [(0.9, 0, (50, 50, 60, 60 + i / 10)) for i in range(100)]
    result = evaluate(answering(dataset, [[*wrong, (0.1, 0, (0, 0, 40, 40))]]), dataset, ("thing",))
    assert result.map == 0


def test_what_cannot_be_answered_counts_as_missed_and_is_named(tmp_path: Path) -> None:
    dataset = scene(tmp_path, [(0, 0, 0, 40, 40)], [(0, 0, 0, 40, 40)], [(0, 0, 0, 40, 40)])
    errors = iter([ImageError("is truncated"), InvalidInputError("is refused")])

    def detect(_: bytes) -> Detections:
        if (error := next(errors, None)) is not None:
            raise error
        return detections([(0.9, 0, (0, 0, 40, 40))])

    result = evaluate(detect, dataset, ("thing",), concurrency=1)
    assert result.failures == (("000.jpg", "is truncated"), ("001.jpg", "is refused"))
    assert result.recall == pytest.approx(1 / 3)
    assert result.map == pytest.approx(34 / 101)  # recalls 0, 0.01, to 0.33


def test_a_server_that_is_gone_ends_the_evaluation(tmp_path: Path) -> None:
    dataset = scene(tmp_path, *[[(0, 0, 0, 40, 40)]] * 50)
    asked = []

    def detect(data: bytes) -> Detections:
        asked.append(data)
        raise ServerUnavailableError("connection refused")

    with pytest.raises(ServerUnavailableError):
        evaluate(detect, dataset, ("thing",), concurrency=2)
    assert len(asked) < 50


def test_nothing_to_find(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"a": []})
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("")
    with pytest.raises(EvaluationError, match="no object of a class that the detector knows"):
        evaluate(lambda _: Detections.empty(), load_dataset(images), ("thing",))


def test_nothing_found_is_zero(tmp_path: Path) -> None:
    dataset = scene(tmp_path, [(0, 0, 0, 40, 40)])
    result = evaluate(lambda _: Detections.empty(), dataset, ("thing",))
    assert (result.map, result.recall, result.detections) == (0, 0, 0)


def test_unknown_classes_do_not_count(tmp_path: Path) -> None:
    dataset = scene(tmp_path, [(0, 0, 0, 40, 40)])
    found = [(0.99, 7, (50.0, 50.0, 60.0, 60.0)), (0.9, 0, (0.0, 0.0, 40.0, 40.0))]
    assert evaluate(answering(dataset, [found]), dataset, ()).map == pytest.approx(1)


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = scene(tmp_path, [(0, 0, 0, 40, 40)])
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(EvaluationError, match=r"pip install 'detserve\[evaluate\]'"):
        evaluate(lambda _: pytest.fail("asked before the check"), dataset, ("thing",))


def test_pycocotools_does_not_talk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = scene(tmp_path, [(0, 0, 0, 40, 40)])
    evaluate(lambda _: Detections.empty(), dataset, ("thing",))
    assert capsys.readouterr().out == ""


ROWS = ((10, 10, 60, 60, 0.9, 1), (12, 12, 60, 60, 0.8, 1), (20, 20, 90, 90, 0.2, 0))


def test_a_file_with_its_own_settings(tmp_path: Path) -> None:
    # The first two boxes are of one class and overlap by 0.92.
    dataset = scene(tmp_path, [(1, 10, 10, 60, 60), (0, 20, 20, 90, 90)])
    path = write_constant_detector(
        tmp_path / "model.onnx", ROWS, labels=("a", "b"), iou_threshold=0.5
    )
    result = evaluate_file(path, dataset)
    assert result.map == pytest.approx(1)
    assert result.detections == 2
    assert [c.name for c in result.per_class] == ["a", "b"]
    assert result.source == str(path)
    loose = evaluate_file(path, dataset, EvaluationSettings(iou_threshold=0.95))
    assert loose.detections == 3
    strict = evaluate_file(path, dataset, EvaluationSettings(score_threshold=0.5))
    assert strict.map == pytest.approx(0.5)  # the second object was found at 0.2
    write_constant_detector(path, ROWS, iou_threshold=1.0)
    assert evaluate_file(path, dataset).detections == 3


def result_of(tmp_path: Path, name: str = "first", score_threshold: float = 0.001) -> Evaluation:
    dataset = scene(tmp_path / name, [(1, 10, 10, 60, 60), (0, 20, 20, 90, 90)])
    path = write_constant_detector(tmp_path / "model.onnx", ROWS)
    return evaluate_file(path, dataset, EvaluationSettings(score_threshold=score_threshold))


def test_results_survive_json_and_are_compared(tmp_path: Path) -> None:
    result = result_of(tmp_path)
    again = Evaluation.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again == result
    assert result.drop_from(again) == 0
    with pytest.raises(EvaluationError, match="no result of an evaluation"):
        Evaluation.from_dict({"map": 1})


def test_what_is_not_the_same_question_is_not_compared(tmp_path: Path) -> None:
    result = result_of(tmp_path)
    with pytest.raises(EvaluationError, match="use the same thresholds"):
        result.drop_from(result_of(tmp_path, "second", score_threshold=0.3))
    other = scene(tmp_path / "other", [(1, 10, 10, 60, 60)])
    with pytest.raises(EvaluationError, match="evaluate both on the same"):
        result.drop_from(evaluate_file(tmp_path / "model.onnx", other))


def test_detectors_of_other_classes_are_not_compared(tmp_path: Path) -> None:
    labels = {"a": [(0, 0.0, 0.0, 20.0, 20.0), (1, 30.0, 30.0, 96.0, 96.0)]}
    file = write_coco(tmp_path / "x.json", as_coco(labels, {0: (1, "cat"), 1: (2, "dog")}))
    dataset = load_dataset(write_images(tmp_path / "i", labels), file)
    both, one = (
        evaluate(lambda _: Detections.empty(), dataset, names)
        for names in (("cat", "dog"), ("cat",))
    )
    assert any("unknown to the detector" in note and "dog" in note for note in one.notes)
    with pytest.raises(EvaluationError, match="dog is known to one only"):
        one.drop_from(both)


def test_the_question_is_known_by_names_and_labels() -> None:
    def dataset(name: str = "a.jpg", box: float = 9, label: int = 0) -> Dataset:
        objects = Objects.of([[0, 0, box, 9]], [label])
        return Dataset((LabelledImage(Path("x", name), objects),))

    same = dataset().fingerprint()
    assert (
        Dataset((LabelledImage(Path("y/a.jpg"), dataset().images[0].objects),)).fingerprint()
        == same
    )
    for other in (dataset("b.jpg"), dataset(box=8), dataset(label=1)):
        assert other.fingerprint() != same


@pytest.mark.skipif(not (SHARED / "data/coco128").is_dir(), reason="needs ../shared")
@pytest.mark.skipif(not DEFAULT_MODEL.is_file(), reason="no detector: run `make model`")
def test_the_default_detector_has_its_known_accuracy() -> None:
    dataset = load_dataset(SHARED / "data/coco128/images")
    assert dataset.notes == ("2 of 128 images have no label file: taken as empty",)
    result = evaluate_file(DEFAULT_MODEL, dataset, EvaluationSettings(iou_threshold=0.6))
    assert (result.images, result.objects, result.failures) == (128, 929, ())
    # From an implementation that shares no code with this one; it resizes in another way.
    assert result.map == pytest.approx(0.3386, abs=0.002)
    assert result.map50 == pytest.approx(0.5087, abs=0.003)
