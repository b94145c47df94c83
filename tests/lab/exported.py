"""Random networks of the detector libraries, exported and imported."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from families.batch import run_grouped
from families.pixels import as_model_takes
from families.raw import run
from import_detector import Folded, ImportOptions, import_detector
from tests.family_models import Array

SCORE, PIXELS = 1e-4, 1e-3  # how far candidates may be from the package's


def planar(images: Array, *, bgr: bool = False, mean: Any = 0, std: Any = 1) -> torch.Tensor:
    """float32 [N, 3, H, W] as a network takes it."""
    ordered = images[..., ::-1] if bgr else images
    return torch.from_numpy(((ordered - np.array(mean)) / std).transpose(0, 3, 1, 2)).float()


def randomise(model: torch.nn.Module, image: torch.Tensor, seed: int = 0) -> torch.nn.Module:
    """Give a network weights whose outputs vary, as trained ones do; those of birth hardly do."""
    torch.manual_seed(seed)
    model.eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.requires_grad:
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over what it sees
            torch.nn.init.constant_(module.weight, 0.5)  # deep random networks are chaotic
            module.train()
    with torch.no_grad():
        model(image)
    return model.eval()


def export(
    model: torch.nn.Module,
    image: torch.Tensor,
    path: Path,
    outputs: Sequence[str],
    *,
    dynamo: bool = False,
    dynamic: bool = False,
) -> Path:
    """Export with torch.onnx, by its own choice of warnings."""
    axes = {name: {0: "batch"} for name in ("image", *outputs)} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's about its own future and its tracing
        torch.onnx.export(
            model.eval(), (image[:1],), str(path), input_names=["image"], dynamo=dynamo,
            output_names=list(outputs), opset_version=18 if dynamo else 17, dynamic_axes=axes,
            external_data=False, verbose=False,
        )  # fmt: skip
    return path


def imported(
    path: Path, images: Array, **options: Any
) -> tuple[Folded, dict[str, torch.Tensor], Array]:
    """Import with the checks of the command, which hold the whole against the exported model.

    Random networks enlarge rounding errors to more than the tolerance asked of post-processing.
    That is therefore compared on outputs of one run of the network.

    Returns:
        The detector; the outputs of the model as it was exported, for the images; and what the
        import's nodes make of those outputs, [N, 300, 6].
    """
    folded = import_detector(
        path, path.with_name(f"{path.stem}-imported.onnx"), ImportOptions(**options)
    )
    inputs = as_model_takes(images, folded.raw, folded.settings)
    outputs = run_grouped(folded.raw.model, folded.raw.image, inputs, folded.raw.batch or 1)
    wanted = {info.name: outputs[info.name] for info in folded.decoder.graph.input}
    candidates = run(folded.decoder, wanted)["candidates"]
    return folded, {name: torch.from_numpy(value) for name, value in outputs.items()}, candidates


def check_rows(candidates: Array, package: Callable[[int, float], Array]) -> int:
    """Hold the candidates of images against the detections of a package.

    Args:
        candidates: [N, 300, 6].
        package: Of an image's index and a score: the package's detections [M, 6] (x1 y1 x2 y2
            score class) of at least that score, nothing suppressed.

    Returns:
        How many detections were compared.
    """
    compared = 0
    for index, rows in enumerate(candidates):
        ours = rows[rows[:, 2] > rows[:, 0]]
        lowest = float(rows[-1, 4])
        theirs = package(index, lowest)
        # Whether a row that ties with the last is in, rounding decides.
        for these, those in ((ours, theirs), (theirs, ours)):
            sure = these[these[:, 4] > lowest + SCORE]
            away = np.abs(those[None] - sure[:, None]) <= [PIXELS] * 4 + [SCORE, 0]
            missing = np.flatnonzero(~away.all(axis=2).any(axis=1))
            assert not len(missing), f"{len(missing)} of {len(sure)}, as {sure[missing[0]]}"
            compared += len(sure)
    return compared
