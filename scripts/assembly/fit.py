"""Whether a detector fits an ensemble."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from tritonclient.grpc.model_config_pb2 import ModelConfig

from assembly.configs import derive_configs
from assembly.detector import DetectorFile
from assembly.serving import ModelNames, Serving
from contract import DetectorInfo
from detserve.repository import DetectorRepository

__all__ = ["completed", "misfits"]


def misfits(file: DetectorFile, current: DetectorRepository, serving: Serving) -> dict[str, str]:
    """In what a detector and an ensemble differ.

    Args:
        file: The detector.
        current: The ensemble.
        serving: What is to change about it.

    Returns:
        What differs, and for each both sides; empty if it fits.

    Raises:
        RepositoryError: The ensemble's configurations cannot be read.
    """
    info = file.info
    fit, own = current.preprocess_settings(), info.preprocess_settings()
    facts = [
        ("engine", file.engine, current.backend),
        ("input size", f"{own.width} x {own.height}", f"{fit.width} x {fit.height}"),
    ]
    # What a file does not say of itself is taken to fit.
    compared = ["resize"]
    if own.resize == fit.resize == "letterbox":
        compared += ["anchor", "pad_value"]
    facts += [
        (name, str(getattr(own, name)), str(getattr(fit, name)))
        for name in compared
        if name in file.said
    ]
    if "iou_threshold" in file.said:
        mine, its = (
            "no suppression of overlaps" if threshold >= 1 else "suppression of overlaps"
            for threshold in (info.iou_threshold, current.selection_settings().iou_threshold)
        )
        facts.append(("postprocessing", mine, its))
    batch = serving.max_batch or current.detector.max_batch_size
    if file.max_batch is not None and file.max_batch < batch:
        facts.append(("greatest batch", str(file.max_batch), str(batch)))
    found = {name: f"{mine}; the ensemble's: {its}" for name, mine, its in facts if mine != its}
    if not found:
        derived = derive_configs(ModelNames.of(current), info, file.engine, Serving())
        wanted, declared = (
            _signature(config) for config in (derived[current.detector.name], current.detector)
        )
        if wanted != declared:
            found["tensors"] = f"{wanted}; the ensemble's: {declared}"
    labels = current.labels()
    if list(labels) != current.served_labels():
        found["lists of labels"] = (
            f"{current.detector.name}/labels.txt and the parameter 'labels' of the ensemble are"
            " different lists: make them the same"
        )
    if info.labels and info.labels != labels:
        found["labels"] = f"{_summary(info.labels)}; the ensemble's: {_summary(labels)}"
    return found


def completed(
    file: DetectorFile, current: DetectorRepository, found: Collection[str]
) -> DetectorInfo:
    """What a detector's file says of itself, and for the rest what its ensemble has.

    Args:
        file: The detector.
        current: The ensemble.
        found: What differs, of `misfits`.
    """
    fit = current.preprocess_settings()
    has: dict[str, Any] = {name: getattr(fit, name) for name in ("resize", "anchor", "pad_value")}
    has["iou_threshold"] = current.selection_settings().iou_threshold
    info = replace(file.info, **{name: has[name] for name in has if name not in file.said})
    if not info.labels and set(found) <= {"engine", "greatest batch"}:
        return replace(info, labels=current.labels())
    return info


def _signature(config: ModelConfig) -> str:
    tensors = [*config.input, *config.output]
    return "; ".join(f"{tensor.name} {list(tensor.dims)}" for tensor in tensors)


def _summary(labels: tuple[str, ...]) -> str:
    if not labels:
        return "none"
    shown = ", ".join(labels[:3])
    return f"{len(labels)} ({shown}{', …' if len(labels) > 3 else ''})"
