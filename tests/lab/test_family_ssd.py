"""SSD against torchvision's own; the default detector's parity is `make parity`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision", reason="make test-lab installs it")
from torchvision.models.detection import ssd300_vgg16, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from families.checking import smooth_images
from families.folding import fold
from tests.family_models import Array, raw_model
from tests.lab.exported import check_rows, export, imported, planar, randomise

CLASSES = 6


class Heads(torch.nn.Module):
    """torchvision's SSD up to where its post-processing starts."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        self.anchor_generator: DefaultBoxGenerator = model.anchor_generator

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Box encodings, class logits and anchors."""
        features = list(self.backbone(image).values())
        found = self.head(features)
        sizes = [(image.shape[2], image.shape[3])] * len(image)
        anchors = self.anchor_generator(ImageList(image, sizes), features)
        return found["bbox_regression"], found["cls_logits"], anchors[0]


def test_ssdlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES)
    images = smooth_images(3, (320, 320))
    image = planar(images, mean=127.5, std=127.5)
    heads = randomise(Heads(model), image)
    names = ["bbox_regression", "cls_logits", "anchors"]
    path = export(heads, image, tmp_path / "ssdlite.onnx", names)
    folded, raw, candidates = imported(path, images)
    assert folded.info.family == "ssd-torchvision"
    # Its suppression is not compiled here: it keeps all, and all that are asked for.
    monkeypatch.setattr(
        "torchvision.ops.boxes.batched_nms", lambda boxes, *_: torch.arange(len(boxes))
    )
    model.topk_candidates = model.detections_per_img = len(raw["anchors"]) * CLASSES

    def package(index: int, lowest: float) -> Array:
        model.score_thresh = lowest
        outputs = {name: raw[name][index : index + 1] for name in ("bbox_regression", "cls_logits")}
        (found,) = model.postprocess_detections(outputs, [raw["anchors"]], [(320, 320)])
        classes = found["labels"][:, None].float() - 1  # less background
        rows: Array = torch.cat([found["boxes"], found["scores"][:, None], classes], 1).numpy()
        return rows

    assert check_rows(candidates, package) > 900


@pytest.mark.parametrize(
    ("build", "size", "cells"),
    [
        (ssd300_vgg16, 300, (38, 19, 10, 5, 3, 1)),
        (ssdlite320_mobilenet_v3_large, 320, (20, 10, 5, 3, 2, 1)),
    ],
)
def test_settings_are_the_packages(build: Any, size: int, cells: tuple[int, ...]) -> None:
    model = build(weights=None, weights_backbone=None, num_classes=CLASSES)
    features = [torch.zeros(1, 1, cell, cell) for cell in cells]
    images = ImageList(torch.zeros(1, 3, size, size), [(size, size)])
    anchors = model.anchor_generator(images, features)[0].numpy()
    rng = np.random.default_rng(0)
    raw = {
        "bbox_regression": rng.normal(size=anchors.shape),
        "cls_logits": rng.normal(size=(len(anchors), CLASSES)) * 9,
        "anchors": anchors,
    }
    settings = fold(raw_model(raw, size_wh=(size, size), constant=("anchors",))).settings
    assert settings.mean == pytest.approx(np.array(model.transform.image_mean) * 255, abs=0.01)
    assert settings.std == pytest.approx(np.array(model.transform.image_std) * 255)
    assert settings.iou_threshold == model.nms_thresh
