"""YOLOX (Megvii, Apache-2.0) for scripts/export_onnx.py.

    pip install torchvision==0.28.0 loguru && pip install --no-deps thop yolox==0.3.0
    python scripts/export_onnx.py examples.yolox:factory --checkpoint yolox_nano.pth \
        --input-size 416 --input-order bgr --std 1 --anchor top-left -o build/yolox_nano.onnx

(What yolox says it depends on are old versions, of ONNX Runtime for one, and a second OpenCV.)

The checkpoints of the YOLOX releases keep the weights under `model`, where they are found. The
sizes as `--factory-arg depth=... width=...`: nano 0.33 0.25, tiny 0.33 0.375, s 0.33 0.5, m 0.67
0.75, l 1 1, x 1.33 1.25; all but nano with `depthwise=False`.
"""

from __future__ import annotations

import torch

from examples.torchvision_operators import declare_missing

__all__ = ["factory"]

WIDTHS = (256, 512, 1024)
BATCH_NORM_EPS = 1e-3  # set by YOLOX's experiments, not by its modules


def factory(
    depth: float = 0.33, width: float = 0.25, *, depthwise: bool = True, classes: int = 80
) -> torch.nn.Module:
    """Build YOLOX, by default Nano with the classes of COCO.

    Args:
        depth: Factor on the number of blocks.
        width: Factor on the number of channels.
        depthwise: Depthwise separable convolutions.
        classes: How many classes the head tells apart.

    Returns:
        A module from float32 [N, 3, H, W], BGR of 0 to 255, to [N, A, 5 + classes] as the releases
        have it: boxes are not decoded, objectness and scores are.
    """
    declare_missing()
    from yolox.models import YOLOPAFPN, YOLOX, YOLOXHead

    channels = list(WIDTHS)
    model = YOLOX(
        YOLOPAFPN(depth, width, in_channels=channels, depthwise=depthwise),
        YOLOXHead(classes, width, in_channels=channels, depthwise=depthwise),
    )
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = BATCH_NORM_EPS
    model.head.decode_in_inference = False  # the import does that, without a loop over levels
    return model
