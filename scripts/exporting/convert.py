"""A PyTorch module as ONNX, with a dynamic batch, and what ONNX itself can check of it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from onnx import shape_inference

from exporting.errors import ExportError
from exporting.outputs import FlatModule

__all__ = ["INPUT", "convert"]

INPUT = "images"
BATCH = "N"
MOST_LINES = 6


def convert(
    module: FlatModule, example: torch.Tensor, path: Path, *, exporter: str, opset: int
) -> onnx.ModelProto:
    """Write a module as ONNX and check the file.

    Args:
        module: The module; its names become the outputs'.
        example: float32 [2, 3, H, W]: H and W become fixed, the batch does not.
        path: ONNX file to write.
        exporter: `torchscript` or `dynamo`.
        opset: ONNX operator set.

    Returns:
        The model as written: checked, with inferred shapes.

    Raises:
        ExportError: PyTorch cannot export the module, or the file is not what was asked for.
    """
    with torch.no_grad():
        shapes = [tuple(tensor.shape) for tensor in module(example)]
    axes = [{0: BATCH} if shape[:1] == example.shape[:1] else {} for shape in shapes]
    if not any(axes):
        raise ExportError(
            f"no output has a batch dimension: for a batch of {len(example)} the module returns "
            + ", ".join(f"{n} {list(s)}" for n, s in zip(module.names, shapes, strict=True))
        )
    try:
        with _quiet():
            if exporter == "dynamo":
                torch.onnx.export(
                    module, (example,), path, dynamo=True, opset_version=opset,
                    input_names=[INPUT], output_names=list(module.names), external_data=False,
                    dynamic_shapes={"images": {0: torch.export.Dim(BATCH)}}, verbose=False,
                )  # fmt: skip
            else:
                torch.onnx.export(
                    module, (example,), path, dynamo=False, opset_version=opset,
                    input_names=[INPUT], output_names=list(module.names),
                    dynamic_axes={INPUT: {0: BATCH}, **dict(zip(module.names, axes, strict=True))},
                )  # fmt: skip
    # RuntimeError: torch.onnx.errors derives from it; ValueError and TypeError: the tracers'.
    except (RuntimeError, TypeError, ValueError) as error:
        raise ExportError(
            f"PyTorch's {exporter} exporter cannot export the module in opset {opset}:"
            f" {_shortened(error)}"
        ) from error
    try:
        return _checked(path, opset, shapes, axes)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise ExportError(f"PyTorch wrote a file that is not valid ONNX: {error}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' advice to PyTorch's developers off the terminal.

    What it warns of (branches that became constants, fallbacks of versions) is not left to advice:
    the file's tensors are checked, and its outputs compared.
    """
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _shortened(error: Exception) -> str:
    """The part of an exporter's message that says what happened."""
    text = str(error).replace("\x1b[96m", "").replace("\x1b[0m", "")
    _, _, summary = text.partition("## Exception summary")
    lines = [line for line in (summary or text).splitlines() if line.strip()]
    lines = [line for line in lines if "full stack trace above" not in line]
    return "\n  ".join(lines[:MOST_LINES]) or type(error).__name__


def _checked(
    path: Path, opset: int, shapes: list[tuple[int, ...]], axes: list[dict[int, str]]
) -> onnx.ModelProto:
    model = onnx.load(path)
    written = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if written != opset:
        raise ExportError(
            f"PyTorch wrote opset {written}, not {opset}: ask for --opset {written}, or use the"
            " other --exporter"
        )
    others = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
    if others:
        raise ExportError(f"the file needs operators that only {', '.join(others)} has")
    image = model.graph.input[0].type.tensor_type.shape.dim
    if len(model.graph.input) != 1 or not image[0].dim_param:
        became = ", ".join(str(dim.dim_param or dim.dim_value) for dim in image)
        became = ", ".join(str(dim.dim_param or dim.dim_value) for dim in image)
        raise ExportError(
            f"the module's code fixes the batch: {INPUT} became [{became}]. Python code that takes"
            " the batch as a number, such as len(tensor), does that; write tensor.shape[0], or use"
            " the other --exporter"
        )
    # PyTorch leaves dimensions that it did not follow as names of its own; they are known.
    for output, shape, axis in zip(model.graph.output, shapes, axes, strict=True):
        tensor = output.type.tensor_type
        tensor.ClearField("shape")
        for place, size in enumerate(shape):
            dim = tensor.shape.dim.add()
            if place in axis:
                dim.dim_param = BATCH
            else:
                dim.dim_value = size
    model = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return model
