"""The DETR family against the post-processing of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers.models.rt_detr.configuration_rt_detr_resnet import RTDetrResNetConfig

import coco
from families.checking import smooth_images
from tests.family_models import Array
from tests.lab.exported import check_rows, export, imported, planar

SIZE = (128, 128)
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4}
HYBRID = {
    "encoder_hidden_dim": 32, "encoder_in_channels": [16, 24, 32], "encoder_ffn_dim": 32,
    "encoder_attention_heads": 4, "d_model": 32, "num_queries": 50, "decoder_ffn_dim": 32,
    "decoder_in_channels": [32, 32, 32], "decoder_layers": 2, "decoder_attention_heads": 4,
    "num_denoising": 0,
}  # fmt: skip


class Heads(torch.nn.Module):
    """What is exported: the two outputs that post-processing reads."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Class logits and boxes."""
        found = self.model(pixel_values=image)
        return found.logits, found.pred_boxes


def backbone() -> Any:
    return RTDetrResNetConfig(
        **RESNET, layer_type="basic", out_features=["stage2", "stage3", "stage4"]
    )


def rt_detr() -> Any:
    config = transformers.RTDetrConfig(backbone_config=backbone(), num_labels=80, **HYBRID)
    return transformers.RTDetrForObjectDetection(config)


def rt_detr_v2() -> Any:
    config = transformers.RTDetrV2Config(backbone_config=backbone(), num_labels=80, **HYBRID)
    return transformers.RTDetrV2ForObjectDetection(config)


def d_fine() -> Any:
    config = transformers.DFineConfig(backbone_config=backbone(), num_labels=80, **HYBRID)
    return transformers.DFineForObjectDetection(config)


def detr(labels: int = 91) -> Any:
    config = transformers.DetrConfig(
        backbone_config=transformers.ResNetConfig(
            **RESNET, layer_type="basic", out_features=["stage4"]
        ),
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=32,
        encoder_layers=1, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=40, num_labels=labels,
    )  # fmt: skip
    return transformers.DetrForObjectDetection(config)


def spread(model: torch.nn.Module) -> Heads:
    """Random weights that tell queries and classes apart."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "class" in name or "score" in name or "bbox" in name or "query" in name:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.3
    return Heads(model.eval())


def detections(processor: Any, heads: dict[str, torch.Tensor], index: int, lowest: float) -> Array:
    outputs = SimpleNamespace(
        logits=heads["logits"][index : index + 1], pred_boxes=heads["boxes"][index : index + 1]
    )
    (found,) = processor.post_process_object_detection(
        outputs, threshold=lowest, target_sizes=[SIZE[::-1]]
    )
    columns = [found["boxes"], found["scores"][:, None], found["labels"][:, None].float()]
    rows: Array = torch.cat(columns, dim=1).numpy()
    return rows


# The newer exporter of PyTorch 2.13 cannot export the other two.
@pytest.mark.parametrize(
    ("make", "dynamo"), [(rt_detr, True), (rt_detr_v2, False), (d_fine, False)]
)
def test_sigmoid(tmp_path: Path, make: Callable[[], Any], dynamo: bool) -> None:
    torch.manual_seed(0)
    model = spread(make())
    images = smooth_images(3, SIZE)
    path = export(model, planar(images), tmp_path / "m.onnx", ["logits", "boxes"], dynamo=dynamo)
    folded, outputs, candidates = imported(path, images)
    assert folded.info.family == "rtdetr"
    assert folded.info.labels == coco.LABELS
    assert "made dynamic from 1" in folded.summary["batch"]
    # The package takes as many pairs as there are queries: the best 50 of our 300.
    best = candidates[:, : HYBRID["num_queries"]]
    processor = transformers.RTDetrImageProcessor()
    assert check_rows(best, lambda i, low: detections(processor, outputs, i, low)) > 200


@pytest.mark.parametrize(("dynamo", "dynamic"), [(False, True), (True, False)])
def test_softmax(tmp_path: Path, dynamo: bool, dynamic: bool) -> None:
    torch.manual_seed(0)
    model = spread(detr())
    images = smooth_images(3, SIZE)
    path = export(
        model, planar(images), tmp_path / "m.onnx", ["logits", "boxes"], dynamo=dynamo,
        dynamic=dynamic,
    )  # fmt: skip
    # All columns: random weights find the ids that COCO does not use as often as others.
    folded, outputs, candidates = imported(path, images, classes=tuple(range(91)))
    assert folded.info.family == "detr"
    processor = transformers.DetrImageProcessor()
    compared = check_rows(candidates[:, :40], lambda i, low: detections(processor, outputs, i, low))
    assert compared > 150
    assert (candidates[:, 40:] == 0).all()
