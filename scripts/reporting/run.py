"""Making, evaluating and timing the variants of a detector, all in one run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from tqdm import tqdm

from contract import load_model
from detserve.engines import EngineError
from evaluation import Dataset, evaluate_file
from machine import processor_name
from reporting.deployment import Stage, measure_deployment
from reporting.images import split
from reporting.measure import MeasureError, Speed, measure
from reporting.table import Recommendation, Row, recommend
from reporting.variants import Made, depends_on_engine, make_variant

__all__ = ["Report", "ReportOptions", "make_report"]

_TIMED_IMAGES = 64  # of the evaluated ones: enough sizes and contents, little memory


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What to measure; the command's options, see its help."""

    images: Path | None
    annotations: Path | None
    calibration: Path | None
    variants: tuple[str, ...]
    engines: tuple[str, ...]
    rounds: int
    seconds: float
    max_drop: float
    serve: bool


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured.

    Attributes:
        model: The detector.
        machine: Cores, processor and versions.
        accuracy_name: What `Row.accuracy` is.
        images: How many images it was measured on.
        rows: The variants; the first is the detector as it was given, in the first engine.
        recommendation: Which to serve here.
        deployment: The base, the recommended variant, and that served by Triton.
        max_drop: mAP that may be lost.
        rounds: Rounds of timing.
        seconds: Length of one timing.
    """

    model: str
    machine: Mapping[str, Any]
    accuracy_name: str
    images: int
    rows: tuple[Row, ...]
    recommendation: Recommendation
    deployment: tuple[Stage, ...]
    max_drop: float
    rounds: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The report as nested dictionaries."""
        return asdict(self)


def make_report(model: Path, workspace: Path, options: ReportOptions) -> Report:
    """Measure a detector's variants.

    Args:
        model: A float32 detector of the contract.
        workspace: An existing folder for the variants.
        options: What to measure.

    Raises:
        ContractError: The file is no detector.
        DatasetError: The images or labels cannot be used.
        EngineError, MeasureError: The detector itself does not run.
        EvaluationError: Accuracy cannot be measured.
        OptimizationError: The calibration images cannot be used.
        RepositoryError, ServerError: The recommended variant cannot be served.
    """
    load_model(model)
    dataset, accuracy_name, calibration = split(
        model, workspace, options.images, options.annotations, options.calibration
    )
    images = [image.path for image in dataset.images]
    candidates = [Candidate("fp32", engine, model) for engine in options.engines]
    failed: list[Row] = []
    files: dict[str, Made] = {}
    labelled = dataset if options.images is not None else None
    steps = [(name, engine) for name in options.variants for engine in options.engines]
    with tqdm(steps, desc="making variants", unit="variant", disable=None) as progress:
        for name, engine in progress:
            key = f"{name}@{engine}" if depends_on_engine(name) else name
            if key not in files:
                files[key] = make_variant(
                    name, model, engine, calibration, labelled, options.max_drop, workspace
                )
            if (path := files[key].path) is not None:
                candidates.append(Candidate(name, engine, path, files[key].notes))
            else:
                failed.append(Row(variant=name, engine=engine, notes=files[key].notes))
    rows = _measure(candidates, dataset, images, options)
    recommendation = recommend(rows, options.max_drop)
    deployment: tuple[Stage, ...] = ()
    if options.serve:
        chosen = candidates[rows.index(recommendation.row)]
        deployment = measure_deployment(
            rows[0], chosen.path, recommendation.row, dataset, options.seconds
        )
    return Report(
        model=model.name, machine=_machine(options.engines), accuracy_name=accuracy_name,
        images=len(images), rows=(*rows, *failed), recommendation=recommendation,
        deployment=deployment, max_drop=options.max_drop, rounds=options.rounds,
        seconds=options.seconds,
    )  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A variant's file, and what is to run it."""

    variant: str
    engine: str
    path: Path
    notes: tuple[str, ...] = ()


def _measure(
    candidates: Sequence[Candidate],
    dataset: Dataset,
    images: Sequence[Path],
    options: ReportOptions,
) -> list[Row]:
    timed = images[:: max(1, len(images) // _TIMED_IMAGES)][:_TIMED_IMAGES]
    accuracies: dict[Candidate, float] = {}
    failures: dict[Candidate, str] = {}
    for candidate in tqdm(candidates, desc="evaluating", unit="variant", disable=None):
        try:
            result = evaluate_file(candidate.path, dataset, engine=candidate.engine)
        except EngineError as error:
            if candidate is candidates[0]:
                raise
            failures[candidate] = f"does not run: {error}"
        else:
            accuracies[candidate] = result.map
    speeds: dict[Candidate, list[Speed]] = {candidate: [] for candidate in accuracies}
    total = options.rounds * len(speeds)
    with tqdm(total=total, desc="timing", unit="run", file=sys.stderr, disable=None) as progress:
        for number in range(options.rounds):
            order = list(speeds)
            # Every second round backwards: what comes later is not always later.
            for candidate in order if number % 2 == 0 else reversed(order):
                if candidate not in failures:
                    try:
                        speeds[candidate].append(_time(candidate, timed, options.seconds))
                    except MeasureError as error:
                        if candidate is candidates[0]:
                            raise
                        failures[candidate] = str(error)
                progress.update()
    base = candidates[0]
    return [
        _row(candidate, base, accuracies, speeds, failures.get(candidate))
        for candidate in candidates
    ]


def _time(candidate: Candidate, images: Sequence[Path], seconds: float) -> Speed:
    """One round: alone for the latencies, then on all cores for the throughput."""
    cores = len(os.sched_getaffinity(0))
    alone = measure(candidate.path, candidate.engine, images, processes=1, seconds=seconds)
    if cores == 1:
        return alone
    together = measure(candidate.path, candidate.engine, images, processes=cores, seconds=seconds)
    return Speed(
        detector_ms=alone.detector_ms, p50_ms=alone.p50_ms, p99_ms=alone.p99_ms,
        images_per_s=together.images_per_s, peak_memory_mb=alone.peak_memory_mb,
    )  # fmt: skip


def _row(
    candidate: Candidate,
    base: Candidate,
    accuracies: Mapping[Candidate, float],
    speeds: Mapping[Candidate, Sequence[Speed]],
    failure: str | None,
) -> Row:
    accuracy = accuracies.get(candidate)
    runs = speeds.get(candidate, ())
    speed = speedup = None
    if runs and len(runs) == len(speeds[base]):
        speed = Speed(
            **{
                field.name: statistics.median(getattr(run, field.name) for run in runs)
                for field in fields(Speed)
            }
        )
        speedup = statistics.median(
            run.images_per_s / of_base.images_per_s
            for run, of_base in zip(runs, speeds[base], strict=True)
        )
    return Row(
        variant=candidate.variant, engine=candidate.engine,
        size_mb=candidate.path.stat().st_size / 1e6,
        accuracy=accuracy, drop=None if accuracy is None else accuracies[base] - accuracy,
        speed=speed, speedup=speedup,
        notes=candidate.notes if failure is None else (failure,),
    )  # fmt: skip


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _machine(engines: Sequence[str]) -> dict[str, Any]:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor_name(),
        "python": platform.python_version(),
        **{name: version for name in engines if (version := _version(name))},
    }
