"""Reading labelled images: both formats, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coco import CATEGORY_IDS, LABELS
from evaluation import Dataset, DatasetError, load_dataset
from evaluation.classes import match_classes
from tests.labelled_images import as_coco, write_coco, write_images, write_yolo

SCENE = {
    "a": [(1, 10.0, 10.0, 60.0, 60.0), (0, 20.0, 20.0, 90.0, 90.0)],
    "b": [],
    "c": [(1, 0.0, 0.0, 96.0, 48.0)],
}
CATEGORIES = {0: (1, "person"), 1: (2, "bicycle")}


def objects_of(dataset: Dataset) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    names = dataset.names or dict(enumerate(LABELS))
    return {
        image.path.stem: [
            (names[int(c)], tuple(np.round(box, 9).tolist()))
            for c, box in zip(image.objects.classes, image.objects.boxes_xyxy, strict=True)
        ]
        for image in dataset.images
    }


def test_both_formats_hold_the_same(tmp_path: Path) -> None:
    images = write_yolo(tmp_path, SCENE)
    file = write_coco(tmp_path / "instances.json", as_coco(SCENE, CATEGORIES))
    yolo, coco = load_dataset(images), load_dataset(images, file)
    wanted = {
        name: [(LABELS[c], tuple(box)) for c, *box in objects] for name, objects in SCENE.items()
    }
    assert objects_of(yolo) == objects_of(coco) == wanted
    for one, other in zip(yolo.images, coco.images, strict=True):
        np.testing.assert_allclose(one.objects.areas, other.objects.areas)
    assert yolo.notes == ("1 of 3 images have no label file: taken as empty",)
    assert coco.notes == ()
    assert yolo.objects == coco.objects == 3


def test_labels_are_found_in_place_of_images_beside_them_or_where_told(tmp_path: Path) -> None:
    images = write_yolo(tmp_path / "standard", SCENE)
    wanted = objects_of(load_dataset(images))
    nested = tmp_path / "nested" / "images" / "val"
    nested.parent.mkdir(parents=True)
    images.rename(nested)
    labels = tmp_path / "nested" / "labels"
    labels.mkdir()
    (tmp_path / "standard/labels").rename(labels / "val")
    assert objects_of(load_dataset(nested)) == wanted
    assert objects_of(load_dataset(nested.parent)) == wanted  # folders are searched
    for file in (labels / "val").iterdir():
        file.rename(nested / file.name)
    (labels / "val").rmdir()
    assert objects_of(load_dataset(nested)) == wanted
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in nested.glob("*.txt"):
        file.rename(elsewhere / file.name)
    with pytest.raises(DatasetError, match="no labels were found"):
        load_dataset(nested)
    assert objects_of(load_dataset(nested, elsewhere)) == wanted


def test_polygons_and_rounded_edges(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"a": []})
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "a.txt").write_text("\ufeff0 0.25 0.5 0.75 0.25 0.5 1\n1 0.5 0.5 1.002 1\n\n")
    (image,) = load_dataset(images).images
    np.testing.assert_allclose(image.objects.boxes_xyxy, [[24, 24, 72, 96], [0, 0, 96, 96]])
    np.testing.assert_allclose(image.objects.areas, [48 * 72, 96 * 96])


def test_boxes_count_in_the_image_as_it_is_turned(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 50)).save(tmp_path / "images/a.jpg", exif=exif)
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 1 1\n")
    (image,) = load_dataset(tmp_path / "images").images
    np.testing.assert_allclose(image.objects.boxes_xyxy, [[0, 0, 50, 100]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.2", "line 1: has 4 numbers; wanted are class cx cy w h"),
        ("0 0.5 0.5 0.2 0.2 0.9", "has 6 numbers"),
        ("0 48 48 20 20", "in parts of the image, 0 to 1, not pixels"),
        ("0 0.5 0.5 -0.2 0.2", "0 to 1"),
        ("0 0.5 0.5 0 0.2", "the width 0 and the height 0.2"),
        ("0 0.5 nan 0.2 0.2", "0 to 1"),
        ("cat 0.5 0.5 0.2 0.2", "are not all numbers"),
        ("-1 0.5 0.5 0.2 0.2", "the class is -1"),
        ("1.5 0.5 0.5 0.2 0.2", "the class is 1.5"),
    ],
)
def test_bad_label_lines_are_named(tmp_path: Path, text: str, message: str) -> None:
    images = write_yolo(tmp_path, SCENE)
    (tmp_path / "labels/a.txt").write_text(text + "\n")
    with pytest.raises(DatasetError, match=f"1 label files cannot be used: a.txt.*{message}"):
        load_dataset(images)


def test_many_bad_files_are_counted(tmp_path: Path) -> None:
    images = write_yolo(tmp_path, {f"{i:02}": [(0, 1, 1, 9, 9)] for i in range(12)})
    for file in (tmp_path / "labels").iterdir():
        file.write_text("junk\n")
    with pytest.raises(DatasetError, match=r"12 label files .* and 7 more"):
        load_dataset(images)


def test_missing_things(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no folder of images"):
        load_dataset(tmp_path / "gone")
    (tmp_path / "images").mkdir()
    with pytest.raises(DatasetError, match="holds no images"):
        load_dataset(tmp_path / "images")
    images = write_yolo(tmp_path, SCENE)
    with pytest.raises(DatasetError, match="there are no annotations"):
        load_dataset(images, tmp_path / "gone.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="holds no label file of these images"):
        load_dataset(images, tmp_path / "empty")
    with pytest.raises(DatasetError, match="limit"):
        load_dataset(images, limit=0)


def test_limit_takes_the_first_by_name(tmp_path: Path) -> None:
    images = write_yolo(tmp_path, SCENE)
    file = write_coco(tmp_path / "instances.json", as_coco(SCENE, CATEGORIES))
    for source in (None, file):
        assert [i.path.stem for i in load_dataset(images, source, 2).images] == ["a", "b"]


def test_unreadable_images_are_left_out_and_said(tmp_path: Path) -> None:
    images = write_yolo(tmp_path, SCENE)
    (images / "c.jpg").write_bytes(b"no image")
    file = write_coco(tmp_path / "instances.json", as_coco(SCENE, CATEGORIES))
    for source in (None, file):
        dataset = load_dataset(images, source)
        assert [image.path.stem for image in dataset.images] == ["a", "b"]
        assert "1 images cannot be read and are left out: c.jpg" in dataset.notes
    for name in ("a", "b"):
        (images / f"{name}.jpg").write_bytes(b"")
    for source in (None, file):
        with pytest.raises(DatasetError, match="no image can be read"):
            load_dataset(images, source)


def test_coco_crowds_and_outline_areas_are_kept(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", SCENE)
    content = as_coco(SCENE, CATEGORIES)
    content["annotations"][0] |= {"iscrowd": 1, "area": 123.5}
    del content["annotations"][1]["area"]
    (image, *_) = load_dataset(images, write_coco(tmp_path / "x.json", content)).images
    assert image.objects.crowds.tolist() == [True, False]
    assert image.objects.areas.tolist() == [123.5, 70.0 * 70.0]


def test_a_coco_file_of_more_or_fewer_images_says_so(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"a": [], "z": []})
    file = write_coco(tmp_path / "x.json", as_coco(SCENE, CATEGORIES))
    dataset = load_dataset(images, file)
    assert [image.path.stem for image in dataset.images] == ["a"]
    assert any("2 images of x.json are not in" in note for note in dataset.notes)
    assert any("1 images are not in x.json" in note for note in dataset.notes)
    with pytest.raises(DatasetError, match="none of the 3 images"):
        load_dataset(write_images(tmp_path / "other", {"z": []}), file)


def test_another_folders_image_of_the_same_name_is_not_taken(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"c": []})
    write_images(images / "b", {"a": []})
    content = as_coco(SCENE, CATEGORIES)
    for entry, name in zip(content["images"], ("a/a.jpg", "other/a.jpg", "x/c.jpg"), strict=True):
        entry["file_name"] = name
    dataset = load_dataset(images, write_coco(tmp_path / "x.json", content))
    # c.jpg is there once and listed once: its folder was left out in unpacking.
    assert [image.path.name for image in dataset.images] == ["c.jpg"]
    assert any("a/a.jpg; other/a.jpg" in note for note in dataset.notes)
    content["images"] = content["images"][1:]
    write_images(images / "d", {"a": []})
    dataset = load_dataset(images, write_coco(tmp_path / "x.json", content | {"annotations": []}))
    assert [image.path.name for image in dataset.images] == ["c.jpg"]


def broken(change: str) -> Any:
    content = as_coco(SCENE, CATEGORIES)
    annotation = content["annotations"][0]
    match change:
        case "list":
            return []
        case "captions":
            del content["categories"]
        case "keys":
            del annotation["bbox"]
        case "image":
            annotation["image_id"] = 99
        case "category":
            annotation["category_id"] = 99
        case "box":
            annotation["bbox"] = [1, 2, -3, 4]
        case "id":
            content["categories"][0]["id"] = "one"
        case "twice":
            content["images"][1]["file_name"] = "a.jpg"
        case "width":
            del content["images"][1]["height"]
        case "same id":
            content["images"][1]["id"] = content["images"][0]["id"]
        case "list id":
            content["images"][1]["id"] = [1]
        case "area":
            annotation["area"] = None
        case "nan":
            annotation["area"] = float("nan")
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("list", "no list 'images'"),
        ("captions", "no list 'categories'"),
        ("keys", r"annotations\[0\] lacks one of bbox"),
        ("image", r"annotations\[0\] is of the image 99, which is not listed"),
        ("category", "is of the category 99"),
        ("box", r"has the box \[1, 2, -3, 4\]"),
        ("id", "has the id 'one'"),
        ("twice", "lists a.jpg twice"),
        ("width", r"x\.json: images\[1\] has the width 96 and the height None"),
        ("same id", r"x\.json: images\[1\] has the id 7, as \[0\] has already"),
        ("list id", r"x\.json: images\[1\] has the id \[1\]"),
        ("area", r"x\.json: 1 annotations .*annotations\[0\] has the area None"),
        ("nan", r"annotations\[0\] has the area nan"),
    ],
)
def test_broken_coco_files(tmp_path: Path, change: str, message: str) -> None:
    images = write_images(tmp_path / "images", SCENE)
    with pytest.raises(DatasetError, match=message):
        load_dataset(images, write_coco(tmp_path / "x.json", broken(change)))


def test_images_of_another_size_than_annotated_are_refused(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", SCENE)
    file = write_coco(tmp_path / "x.json", as_coco(SCENE, CATEGORIES, (640, 480)))
    with pytest.raises(DatasetError, match=r"a.jpg has 96x96 pixels, .* 640x480"):
        load_dataset(images, file)
    (tmp_path / "no.json").write_text("{")
    with pytest.raises(DatasetError, match="cannot be read as JSON"):
        load_dataset(images, tmp_path / "no.json")


@pytest.mark.parametrize(
    "text",
    [
        "names: [person, bicycle]\n",
        "path: .\nnames:\n  0: person\n  1: bicycle\n",
        "names:\n- person\n- bicycle\n",
    ],
)
def test_names_of_data_yaml(tmp_path: Path, text: str) -> None:
    pytest.importorskip("yaml")
    images = write_yolo(tmp_path, SCENE)
    (tmp_path / "data.yaml").write_text(text)
    assert load_dataset(images).names == {0: "person", 1: "bicycle"}


def test_a_data_yaml_without_names_and_classes_txt(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    images = write_yolo(tmp_path, SCENE)
    (tmp_path / "labels/classes.txt").write_text("person\nbicycle\n")
    assert load_dataset(images).names == {0: "person", 1: "bicycle"}
    (tmp_path / "labels/classes.txt").unlink()
    for text, message in (("train: x\n", "names no classes"), ("names: [", "is no YAML file")):
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(DatasetError, match=message):
            load_dataset(images)


def dataset_of(names: dict[int, str], used: list[int], *, coco_ids: bool = False) -> Dataset:
    from evaluation.dataset import LabelledImage, Objects

    objects = Objects.of([[0, 0, 9, 9]] * len(used), used)
    return Dataset((LabelledImage(Path("a.jpg"), objects),), names, coco_ids)


def test_classes_match_by_name_whatever_their_numbers() -> None:
    names = {3: "Traffic_Light", 8: "cat", 9: "unicorn"}
    matched, notes = match_classes(dataset_of(names, [3, 9]), ("cat", "traffic light"))
    assert matched == {3: 1, 8: 0}
    assert notes == [
        "1 classes of the dataset are unknown to the detector, their objects do not count: unicorn"
    ]


def test_coco_ids_match_a_detector_without_labels() -> None:
    names = dict(zip(CATEGORY_IDS, LABELS, strict=True))
    matched, (note,) = match_classes(dataset_of(names, [90], coco_ids=True), ())
    assert matched == {number: index for index, number in enumerate(CATEGORY_IDS)}
    assert "the detector has no labels" in note
    assert match_classes(dataset_of(names, [90], coco_ids=True), LABELS) == (matched, [])


def test_yolo_classes_are_the_detectors_numbers() -> None:
    assert match_classes(dataset_of({}, [0, 2]), ("a", "b", "c")) == ({0: 0, 1: 1, 2: 2}, [])
    assert match_classes(dataset_of({}, [0, 2]), ()) == ({0: 0, 1: 1, 2: 2}, [])


@pytest.mark.parametrize(
    ("names", "used", "coco_ids", "labels", "message"),
    [
        ({}, [80], False, LABELS, r"classes \[80\], but the detector has 80: 0 to 79"),
        ({0: "a"}, [4], False, ("a",), r"objects are of the classes \[4\]"),
        ({0: "a", 1: "b"}, [0], False, ("x", "y"), "no class of the dataset: a; b is one"),
        ({12: "a"}, [12], True, (), "category ids are not COCO's"),
    ],
)
def test_classes_that_cannot_be_matched(
    names: dict[int, str], used: list[int], coco_ids: bool, labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        match_classes(dataset_of(names, used, coco_ids=coco_ids), labels)
