"""The variants of a report, made by the steps of `optimize`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from contract import load_model
from detserve.engines import EngineError
from evaluation import Dataset
from families import DetectorImportError
from optimization import OptimizationError
from optimization.post_training import Int8Options
from optimize import Pruning, optimize, save_optimized

__all__ = ["VARIANTS", "Made", "depends_on_engine", "make_variant"]

VARIANTS = (
    "clean", "fp16", "int8", "l1:0.5", "2:4", "channels:0.1", "channels:0.3", "channels:0.1+int8",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """One variant for one engine.

    Attributes:
        path: Its file; None if it could not be made.
        notes: What its steps have to say.
    """

    path: Path | None
    notes: tuple[str, ...]


def make_variant(
    name: str,
    model: Path,
    engine: str,
    calibration: Path,
    labelled: Dataset | None,
    max_drop: float,
    workspace: Path,
) -> Made:
    """Make a variant.

    Args:
        name: One of `VARIANTS`: steps joined by a plus.
        model: A float32 detector of the contract.
        engine: What is to run it: int8 has another form for each.
        calibration: Folder of images for INT8 and for choosing channels.
        labelled: Labelled images that INT8 has to stay accurate on; None to go by agreement.
        max_drop: mAP that INT8 may lose.
        workspace: An existing folder to write into.

    Raises:
        ContractError: The file is no detector.
        EvaluationError, DatasetError, OSError: As `optimize.optimize` raises them.
    """
    steps = name.split("+")
    pruning = next((Pruning.parse(step) for step in steps if ":" in step), None)
    int8 = None
    if "int8" in steps:
        # What is lost by pruning is not INT8's to make good: it is held to the pruned detector.
        int8 = Int8Options(
            calibration=calibration,
            target=engine,
            dataset=labelled,
            max_drop=None if labelled is None else max_drop,
        )
    source, _ = load_model(model)
    path = workspace / f"{name.replace(':', '-')}-{engine}.onnx"
    try:
        made, reports, _ = optimize(
            source, clean_graph="clean" in steps, pruning=pruning, fp16="fp16" in steps,
            int8=int8, calibration=calibration if pruning is not None else None,
        )  # fmt: skip
        save_optimized(made, path)
    except (DetectorImportError, EngineError, OptimizationError) as error:
        return Made(None, (f"could not be made: {error}",))
    return Made(path, tuple(note for report in reports for note in report.notes))


def depends_on_engine(name: str) -> bool:
    """Whether a variant has another file for every engine."""
    return "int8" in name.split("+")
