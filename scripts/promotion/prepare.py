"""From what the user brings to a detector of the contract: import, then optimise."""

from __future__ import annotations

import contextlib
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from contract import ContractError, DetectorInfo, load_model
from import_detector import DetectorImportError, ImportOptions, import_detector
from promotion.errors import PromotionError
from promotion.stages import Stages

__all__ = ["import_model", "optimize_model"]


def import_model(
    model: Path, family: str | None, source: str, folder: Path, stages: Stages
) -> tuple[Path, DetectorInfo | None]:
    """Make sure that a file is a detector of the contract, folding it if it is not one yet.

    Args:
        model: ONNX file; or a TensorRT plan, which is taken as it is.
        family: Key of `families.FAMILIES`, of a file as it was exported; None to recognise it.
        source: Where the model comes from, for the metadata of an import.
        folder: Where an imported file goes.
        stages: Where to tell what is done.

    Returns:
        The detector's file, and what it says of itself; None for a plan.

    Raises:
        PromotionError: It is no detector and cannot be made one.
    """
    with stages.stage("import") as stage:
        if model.suffix == ".plan":
            stage.say(f"{model} is a plan: taken as it is")
            return model, None
        try:
            raw = onnx.load(model)
        except (DecodeError, OSError) as error:
            raise PromotionError(f"{model} cannot be read as an ONNX model: {error}") from error
        with contextlib.suppress(ContractError):
            info = DetectorInfo.of(raw)
            stage.say(f"{model} is a detector already: {describe(info)}")
            return model, info
        target = folder / f"{model.stem}.onnx"
        try:
            folded = import_detector(model, target, ImportOptions(family=family, source=source))
        except DetectorImportError as error:
            raise PromotionError(f"{model}: {error}") from error
        stage.say(f"{model} imported: {describe(folded.info)}")
        return target, folded.info


def optimize_model(
    model: Path, how: str, calibration: Path | None, engine: str, folder: Path, stages: Stages
) -> Path:
    """Make a detector smaller or faster.

    Args:
        model: Detector of the contract.
        how: `clean`, `fp16` or `int8`; or `none`.
        calibration: Folder of images for int8.
        engine: What will serve it: the runtime that int8 is for.
        folder: Where the result goes.
        stages: Where to tell what is done.

    Returns:
        The file to go on with.

    Raises:
        PromotionError: It cannot be done, or the result is no good.
    """
    if how == "none":
        return model
    try:
        from optimization.int8 import FORMS
        from optimization.post_training import Int8Options
        from optimize import OPTIMIZE_ERRORS, optimize, save_optimized
    except ModuleNotFoundError as error:
        raise PromotionError(
            f"--optimize needs {error.name}: pip install 'detserve[optimize]'"
        ) from error
    with stages.stage("optimise") as stage:
        int8 = None
        if how == "int8":
            if calibration is None:
                raise PromotionError("int8 needs a folder of images to calibrate on")
            target = engine if engine in FORMS else "onnxruntime"
            int8 = Int8Options(calibration=calibration, target=target)
        target_path = folder / f"{model.stem}-{how}.onnx"
        try:
            optimized, reports, _ = optimize(
                load_model(model)[0], clean_graph=how == "clean", fp16=how == "fp16", int8=int8
            )
            save_optimized(optimized, target_path)
        except OPTIMIZE_ERRORS as error:
            raise PromotionError(f"{model} cannot be optimised: {error}") from error
        before, after = model.stat().st_size / 1e6, target_path.stat().st_size / 1e6
        stage.say(
            f"{describe(DetectorInfo.of(optimized))}; {before:.1f} to {after:.1f} MB",
            megabytes=[round(before, 2), round(after, 2)],
        )
        for report in reports:
            for note in report.notes:
                stage.say(note)
    return target_path


def describe(info: DetectorInfo) -> str:
    """A detector in a few words."""
    width, height = info.input_size_wh
    labels = f"{len(info.labels) or 'no'} labels"
    return f"{info.family or 'unknown family'} {info.variant} {width}x{height}, {labels}"
