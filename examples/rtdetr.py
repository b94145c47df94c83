"""RT-DETR out of the transformers library (Apache-2.0) for scripts/export_onnx.py.

    pip install transformers
    python scripts/export_onnx.py examples.rtdetr:factory --factory-arg config=rtdetr/config.json \
        --checkpoint rtdetr/model.safetensors --resize stretch --unordered -o build/rtdetr.onnx

`config.json` and `model.safetensors` are the two files of a published model.
"""

from __future__ import annotations

from pathlib import Path

import torch

from examples.torchvision_operators import declare_missing

__all__ = ["factory"]


def factory(config: str) -> torch.nn.Module:
    """Build an RT-DETR.

    Args:
        config: Path of its `config.json`, which is all that is read: no weights are fetched.

    Returns:
        A module from float32 [N, 3, H, W], RGB of 0 to 1, to `logits` and `pred_boxes`.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if not Path(config).is_file():
        raise FileNotFoundError(
            f"config={config}: there is no such file; wanted is the config.json of an RT-DETR"
        )
    declare_missing()
    from transformers import RTDetrConfig, RTDetrForObjectDetection

    settings = RTDetrConfig.from_json_file(config)
    settings.use_pretrained_backbone = False
    return RTDetrForObjectDetection(settings)
