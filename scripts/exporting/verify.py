"""The proof: PyTorch against ONNX Runtime, on real images, one at a time and in batches."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from tqdm import tqdm

from detserve.engines import ORT_ERRORS
from exporting.compare import Difference, Tolerance, align_rows, differences, rounding
from exporting.convert import INPUT
from exporting.errors import ExportError
from exporting.outputs import FlatModule

__all__ = ["BATCHES", "Proof", "verify"]

BATCHES = (1, 4)
# Rows are searched in pairs; nothing with more of them is a set of queries.
MOST_QUERIES = 1000

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Proof:
    """What a comparison that held has found.

    Attributes:
        worst: The worst difference by output.
        images: Images compared.
        moved: Rows that had changed places.
        rounding: The most that float32 rounds by, where that was needed; else 0.
    """

    worst: dict[str, Difference]
    images: int
    moved: int = 0
    rounding: float = 0.0


def verify(
    path: Path,
    module: FlatModule,
    names: Sequence[str],
    images: npt.NDArray[np.float32],
    tolerance: Tolerance,
    *,
    rounding_times: float = 0.0,
    unordered: bool = False,
) -> Proof:
    """Run the same images through both at batch 1 and 4.

    Args:
        path: The ONNX file.
        module: What it was made of.
        names: What the images are called.
        images: float32 [count, 3, H, W], as the module takes them.
        tolerance: What may differ.
        rounding_times: How many times what float32 itself rounds by may differ in addition.
        unordered: The rows of outputs [N, Q, ...] are a set.

    Raises:
        ExportError: The module is not deterministic, the file does not run, or an output differs;
            the message names the worst one.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what is wrong is raised, not printed
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise ExportError(f"ONNX Runtime does not load the file: {error}") from error
    _check_repeatable(module, images[:1], tolerance)
    worst: dict[str, Difference] = {}
    moved, most_rounding = 0, 0.0
    batches = list(_batches(len(images)))
    for places in tqdm(batches, desc="comparing", unit="batch", disable=None, leave=False):
        batch = images[places]
        expected = _run_torch(module, batch)
        try:
            found = dict(
                zip(module.names, session.run(list(module.names), {INPUT: batch}), strict=True)
            )
        except ORT_ERRORS as error:
            raise ExportError(
                f"ONNX Runtime does not run a batch of {len(batch)}: {error}"
            ) from error
        results = differences(expected, found, tolerance)
        if results[0].share > 1 and rounding_times:
            rounds = _rounding(module, batch, expected, tolerance)
            slack = {name: rounding_times * value for name, value in rounds.items()}
            results = differences(expected, found, tolerance, slack)
            if results[0].share <= 1:
                most_rounding = max(most_rounding, *(float(r.max()) for r in rounds.values()))
        if results[0].share > 1:
            aligned, rows = _aligned(expected, found, tolerance)
            after = differences(expected, aligned, tolerance)
            if not unordered or after[0].share > 1:
                raise ExportError(
                    _refusal(after[0] if unordered else results[0], names, places, tolerance)
                    + _advice(unordered, after[0].share <= 1, rows)
                )
            results, moved = after, moved + rows
        for item in results:
            before = worst.setdefault(item.name, item)
            greatest = max(before.greatest, item.greatest)
            worst[item.name] = replace(max(before, item, key=_share), greatest=greatest)
    return Proof(worst, len(images), moved, most_rounding)


def _share(difference: Difference) -> float:
    return difference.share


def _batches(count: int) -> Iterator[list[int]]:
    """Which images go together: each batch size goes through all of them."""
    for size in BATCHES:
        for start in range(0, count, size):
            yield [place % count for place in range(start, start + size)]


def _run_torch(module: FlatModule, batch: npt.NDArray[np.float32]) -> dict[str, Array]:
    with torch.inference_mode():
        outputs = module(torch.from_numpy(batch))
    return {name: value.numpy() for name, value in zip(module.names, outputs, strict=True)}


def _rounding(
    module: FlatModule,
    batch: npt.NDArray[np.float32],
    expected: dict[str, Array],
    tolerance: Tolerance,
) -> dict[str, npt.NDArray[np.float64]]:
    """What float32 rounds by on these images; empty if the module runs in float32 alone."""
    exact = copy.deepcopy(module).double()
    try:
        with torch.inference_mode():
            outputs = exact(torch.from_numpy(batch).double())
    except RuntimeError:  # code of the module that asks for float32
        return {}
    return {
        name: rounding(expected[name], value.numpy(), tolerance)
        for name, value in zip(module.names, outputs, strict=True)
    }


def _check_repeatable(
    module: FlatModule, image: npt.NDArray[np.float32], tolerance: Tolerance
) -> None:
    first = _run_torch(module, image)
    worst = differences(first, _run_torch(module, image), tolerance)[0]
    if not np.isfinite(worst.share):
        raise ExportError(f"PyTorch itself gives no usable numbers: {worst}")
    if worst.share > 1:
        raise ExportError(
            f"the module gives another result each time, also in eval mode: {worst}. Something in"
            " it is random (dropout that ignores eval(), noise, sampling)"
        )


def _aligned(
    expected: dict[str, Array], found: dict[str, Array], tolerance: Tolerance
) -> tuple[dict[str, Array], int]:
    if any(value.ndim > 1 and value.shape[1] > MOST_QUERIES for value in expected.values()):
        return found, 0
    return align_rows(expected, found, tolerance)


def _refusal(
    worst: Difference, names: Sequence[str], places: list[int], tolerance: Tolerance
) -> str:
    where = f"in a batch of {len(places)}"
    if worst.index:
        where = f"of image {names[places[worst.index[0]]]} {where}"
    return (
        f"ONNX Runtime does not give what PyTorch gives: {worst}, {where}; tolerated are"
        f" {tolerance.absolute:g} + {tolerance.relative:g} x the expected value"
    )


def _advice(unordered: bool, same_set: bool, rows: int) -> str:
    if not unordered and same_set:
        return (
            f". The same rows are there, {rows} of them in another place: if they are a set, as the"
            " queries of a DETR are, say --unordered"
        )
    return ". Code that branches on values or shapes is exported as it went for the example image"
