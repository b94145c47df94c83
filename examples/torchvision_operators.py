"""torchvision beside a PyTorch that its compiled operators were not built for.

Detector libraries import torchvision for what follows the network, such as NMS. Where its wheel and
PyTorch's are of different builds (a CUDA one beside a CPU one), that import fails with "operator
torchvision::nms does not exist". The networks need none of the operators: with their names declared
the import succeeds, and using one raises an error.
"""

from __future__ import annotations

import importlib.util

import torch

__all__ = ["declare_missing"]

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: list[torch.library.Library] = []  # an operator lives as long as its library object


def declare_missing() -> None:
    """Make `import torchvision` work; change nothing where it does."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):  # those that torchvision refers to when it is imported
            library.define(name + SCHEMA)
        _library.append(library)
        import torchvision  # noqa: F401
