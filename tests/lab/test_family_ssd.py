"""SSD against torchvision's own; the default detector's parity is `make parity`'s."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision", reason="make test-lab installs it")
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from families.checking import smooth_images
from tests.family_models import Array
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
