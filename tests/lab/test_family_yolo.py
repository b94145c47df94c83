"""YOLOX, YOLOv5, v8, v9, v10 and 11 against the post-processing of their own packages."""

from __future__ import annotations

import importlib.machinery
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import packaging.version
import pytest
import torch
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.nms import non_max_suppression

from families.checking import smooth_images
from tests.family_models import Array
from tests.lab.exported import check_rows, export, imported, planar, randomise

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # thop, which yolox imports, of distutils
    from yolox.models import YOLOPAFPN, YOLOX, YOLOXHead
    from yolox.utils.boxes import postprocess
    from yolox.utils.demo_utils import demo_postprocess

SHARED_YOLOX = Path(__file__).resolve().parents[3] / "shared/models/yolox_nano.onnx"


def yolox_rows(decoded: torch.Tensor, lowest: float, monkeypatch: pytest.MonkeyPatch) -> Array:
    """YOLOX's detections of one image for every class alone, for it keeps an anchor's best only."""
    monkeypatch.setattr(
        "torchvision.ops.batched_nms", lambda boxes, *_: torch.arange(len(boxes))
    )  # nothing is suppressed
    found = []
    for class_id in range(decoded.shape[2] - 5):
        one = torch.cat([decoded[..., :5], decoded[..., 5 + class_id : 6 + class_id]], 2)
        (rows,) = postprocess(one.clone(), 1, conf_thre=lowest)
        if rows is not None:
            scores = rows[:, 4:5] * rows[:, 5:6]
            found.append(torch.cat([rows[:, :4], scores, torch.full_like(scores, class_id)], 1))
    detections: Array = torch.cat(found).numpy()
    return detections


@pytest.mark.parametrize("decoded", [False, True])
def test_yolox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: bool) -> None:
    width, height = size = (160, 128)
    model = YOLOX(YOLOPAFPN(0.33, 0.25, depthwise=True), YOLOXHead(7, 0.25, depthwise=True))
    images = smooth_images(3, size)
    randomise(model, planar(smooth_images(24, size), bgr=True))
    for conv in model.head.reg_preds:
        conv.weight.data *= 0.2  # logarithms of sizes
    model.head.decode_in_inference = decoded
    # Decoding writes into slices: an export with a fixed batch has that in the indices.
    path = export(model, planar(images), tmp_path / "m.onnx", ["output"], dynamic=decoded)
    folded, outputs, candidates = imported(path, images)
    assert folded.info.family == "yolox"
    assert f"boxes {'decoded' if decoded else 'not decoded'}" in folded.summary["family"]
    assert decoded or "made dynamic from 1" in folded.summary["batch"]
    if not decoded:
        demo_postprocess(outputs["output"].numpy(), (height, width))  # in place
    compared = check_rows(
        candidates, lambda i, lowest: yolox_rows(outputs["output"][i : i + 1], lowest, monkeypatch)
    )
    assert compared > 700


@pytest.mark.skipif(not SHARED_YOLOX.is_file(), reason="the trained YOLOX-Nano is not here")
def test_trained_yolox_nano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "yolox_nano.onnx"
    path.write_bytes(SHARED_YOLOX.read_bytes())
    _, outputs, candidates = imported(path, smooth_images(3, (416, 416)))
    decoded = torch.from_numpy(demo_postprocess(outputs["output"].numpy(), (416, 416)))
    compared = check_rows(
        candidates, lambda i, lowest: yolox_rows(decoded[i : i + 1], lowest, monkeypatch)
    )
    assert compared > 1500


@pytest.fixture
def unsuppressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ultralytics' and YOLOv5's suppression without its effect: torchvision's is not compiled."""
    monkeypatch.setattr("torchvision.ops.nms", lambda boxes, *_: torch.arange(len(boxes)))


def every_pair(function: Any, outputs: torch.Tensor, lowest: float) -> Array:
    (found,) = function(outputs.clone(), lowest, 1.0, multi_label=True, max_det=30000)
    rows: Array = found.numpy()
    return rows


@pytest.mark.usefixtures("unsuppressed")
@pytest.mark.parametrize("name", ["yolov8n", "yolov9t", "yolo11n"])
def test_attributes_first(tmp_path: Path, name: str) -> None:
    images = smooth_images(3, (160, 128))
    model = DetectionModel(f"{name}.yaml", nc=6, verbose=False)
    randomise(model, planar(smooth_images(24, (160, 128)), std=255))
    model.fuse(verbose=False)
    head: Any = model.model[-1]
    head.export, head.format, head.dynamic = True, "onnx", False
    path = export(model, planar(images), tmp_path / "yolo.onnx", ["output0"])
    folded, outputs, candidates = imported(path, images)
    assert folded.info.family == "yolov8"
    compared = check_rows(
        candidates,
        lambda i, lowest: every_pair(non_max_suppression, outputs["output0"][i : i + 1], lowest),
    )
    assert compared > 700


def test_yolov10_end_to_end(tmp_path: Path) -> None:
    images = smooth_images(3, (160, 128))
    model = DetectionModel("yolov10n.yaml", nc=6, verbose=False)
    randomise(model, planar(smooth_images(24, (160, 128)), std=255))
    head: Any = model.model[-1]
    head.end2end = True
    head.export, head.format, head.dynamic = True, "onnx", False
    path = export(model, planar(images), tmp_path / "yolo.onnx", ["output0"])
    folded, outputs, candidates = imported(path, images)
    assert outputs["output0"].shape[2] == 6
    assert folded.info.family == "end2end"
    assert folded.info.iou_threshold == 1

    def package(index: int, lowest: float) -> Array:
        (found,) = non_max_suppression(outputs["output0"][index : index + 1], lowest, end2end=True)
        rows: Array = found.numpy()
        return rows

    assert check_rows(candidates, package) > 900


@pytest.fixture
def yolov5(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The package yolov5, less what it imports for tables, plots and downloads."""
    for name in ("pandas", "pkg_resources", "requests", "seaborn"):
        module = MagicMock(name=name, __spec__=importlib.machinery.ModuleSpec(name, None))
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["pkg_resources"].parse_version = packaging.version.parse  # type: ignore[attr-defined]
    package = pytest.importorskip("yolov5", reason="make test-lab installs it")
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "yolov5"]:
        del sys.modules[name]


@pytest.mark.usefixtures("unsuppressed")
def test_yolov5(tmp_path: Path, yolov5: ModuleType) -> None:
    from yolov5.models.yolo import DetectionModel as Yolov5Model
    from yolov5.utils.general import non_max_suppression as yolov5_suppression

    images = smooth_images(3, (160, 128))
    folder = Path(str(yolov5.__file__)).parent
    model = Yolov5Model(str(folder / "models/yolov5n.yaml"), nc=6)
    randomise(model, planar(smooth_images(24, (160, 128)), std=255))
    head: Any = model.model[-1]
    head.export = True
    path = export(model, planar(images), tmp_path / "yolov5.onnx", ["output0"])
    folded, outputs, candidates = imported(path, images)
    assert folded.info.family == "yolov5"
    compared = check_rows(
        candidates,
        lambda i, lowest: every_pair(yolov5_suppression, outputs["output0"][i : i + 1], lowest),
    )
    assert compared > 700
    assert np.isfinite(candidates).all()
