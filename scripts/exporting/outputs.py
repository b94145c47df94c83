"""Nested outputs of a module as named tensors, which is all that ONNX knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch

from exporting.errors import ExportError

__all__ = ["FlatModule", "flatten"]

# What is wanted of modules that return more: auxiliary outputs serve training alone.
DETECTIONS = (("logits", "pred_boxes"), ("pred_logits", "pred_boxes"))


def flatten(value: object) -> dict[str, torch.Tensor]:
    """Name every tensor of a module's output by its way there.

    Args:
        value: A tensor (`output`), or mappings, dataclasses, tuples and lists of tensors:
            `logits`, `output_0`, `aux_outputs_0_logits`. None is left out, and numbers.

    Raises:
        ExportError: There is no tensor.
    """
    tensors = dict(_walk("", value))
    if not tensors:
        raise ExportError(f"the module returned no tensor, but a {type(value).__name__}")
    return tensors


def _walk(path: str, value: object) -> Iterator[tuple[str, torch.Tensor]]:
    items: list[tuple[object, object]] = []
    if isinstance(value, torch.Tensor):
        yield path or "output", value
    elif isinstance(value, Mapping):  # transformers' outputs are dataclasses too
        items = list(value.items())
    elif dataclasses.is_dataclass(value):
        items = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", range(len(value)))
        items = list(zip(names, value, strict=True))
    for name, item in items:
        prefix = path or ("output" if isinstance(name, int) else "")
        yield from _walk(f"{prefix}_{name}" if prefix else str(name), item)


class FlatModule(torch.nn.Module):  # PyTorch is not followed by mypy
    """A module that returns a tuple of the chosen tensors.

    Attributes:
        names: What they are called.
        left_out: What else the module returns.
    """

    def __init__(
        self, module: torch.nn.Module, example: torch.Tensor, outputs: Sequence[str] | None = None
    ) -> None:
        """Run the module once to see what it returns.

        Args:
            module: Any module of one image tensor.
            example: float32 [N, 3, H, W].
            outputs: Names as `flatten` gives them; by default logits and boxes where both are
                there, else all.

        Raises:
            ExportError: The module does not take such images, or an output that was asked for is
                not there.
        """
        super().__init__()
        self.module = module
        try:
            with torch.no_grad():
                output = module(example)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ExportError(
                f"the module does not take images float32 {list(example.shape)}: {error}"
            ) from error
        found = list(flatten(output))
        usual = next((pair for pair in DETECTIONS if set(pair) <= set(found)), tuple(found))
        self.names = tuple(outputs or usual)
        unknown = [name for name in self.names if name not in found]
        if unknown:
            raise ExportError(
                f"the module returns no {', '.join(unknown)}; it returns {', '.join(found)}"
            )
        self.left_out = tuple(name for name in found if name not in self.names)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the module; return the chosen tensors in the order of `names`."""
        tensors = flatten(self.module(images))
        return tuple(tensors[name] for name in self.names)
