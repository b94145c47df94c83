"""What the detector libraries need before they can be imported."""

from __future__ import annotations

import importlib.util
import os

# Nothing may be downloaded, and nothing asked of a network, while tests run.
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "YOLO_OFFLINE": "true"}
os.environ |= {"YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false", "YOLOv5_VERBOSE": "false"}


def _declare_torchvision_operators() -> None:
    """Let torchvision be imported without its compiled library.

    The wheel on PyPI is built against PyTorch for CUDA: beside PyTorch for the CPU its library does
    not load, and the import fails over two operators that then are unknown. Their declarations
    are enough: what the tests call of torchvision is Python.
    """
    import torch

    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for name in ("nms", "qnms"):
        try:
            torch.library.define(f"torchvision::{name}", schema)
        except RuntimeError:
            return  # the library did load


if importlib.util.find_spec("torch") and importlib.util.find_spec("torchvision"):
    _declare_torchvision_operators()
