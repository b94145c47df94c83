"""The speed and the memory of a detector's file, measured in processes of their own."""

from __future__ import annotations

import itertools
import multiprocessing
import queue
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np

from contract import load_model
from detserve.engines import load_engine
from detserve.imaging import preprocess
from detserve.nms import SelectionSettings, select_detections

__all__ = ["MeasureError", "Speed", "measure"]

_WARM_UP = 20  # images before anything is timed
_START_TIMEOUT = 300.0  # seconds that loading a model may take


class MeasureError(RuntimeError):
    """A file could not be run; the message holds the engine's reason."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What one run of one file gave.

    Attributes:
        detector_ms: Median time of the detector alone, batch 1, one thread.
        p50_ms: Median time of an image from encoded bytes to detections.
        p99_ms: 99th percentile of the same.
        images_per_s: Images a second of all processes together.
        peak_memory_mb: Greatest resident memory of one process, in MiB.
    """

    detector_ms: float
    p50_ms: float
    p99_ms: float
    images_per_s: float
    peak_memory_mb: float


def _run(
    path: Path, engine_name: str, image_paths: Sequence[Path], seconds: float, barrier: Barrier
) -> dict[str, Any]:
    images = [image.read_bytes() for image in image_paths]
    _, info = load_model(path)
    engine = load_engine(path, engine_name, intra_op_threads=1)
    settings = info.preprocess_settings()
    selection = SelectionSettings(iou_threshold=info.iou_threshold)
    batch = np.empty((1, settings.height, settings.width, 3), np.uint8)
    detector_s: list[float] = []
    total_s: list[float] = []

    def detect(image: bytes) -> None:
        begin = time.perf_counter()
        geometry = preprocess(image, settings, batch[0])
        prepared = time.perf_counter()
        candidates = engine.infer(batch)
        inferred = time.perf_counter()
        select_detections(candidates[0], geometry, selection)
        detector_s.append(inferred - prepared)
        total_s.append(time.perf_counter() - begin)

    for image in itertools.islice(itertools.cycle(images), _WARM_UP):
        detect(image)
    detector_s.clear()
    total_s.clear()
    barrier.wait(_START_TIMEOUT)
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        detect(images[len(total_s) % len(images)])
    elapsed = time.perf_counter() - start
    return {
        "detector_s": detector_s,
        "total_s": total_s,
        "elapsed_s": elapsed,
        "peak_memory_mb": _peak_memory_mb(),
    }


def _peak_memory_mb() -> float:
    # Not getrusage: what a spawned process inherits there is its parent's peak.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise MeasureError("the system does not tell a process's peak memory (VmHWM)")


def _process(
    path: Path,
    engine_name: str,
    image_paths: Sequence[Path],
    seconds: float,
    barrier: Barrier,
    results: Any,
) -> None:
    try:
        results.put(_run(path, engine_name, image_paths, seconds, barrier))
    except (RuntimeError, ValueError) as error:  # what engines and files raise
        barrier.abort()
        results.put(str(error))


def measure(
    path: Path, engine: str, image_paths: Sequence[Path], *, processes: int, seconds: float
) -> Speed:
    """Run the whole pipeline on one file in several processes at once, one thread each.

    Args:
        path: An ONNX detector of the contract.
        engine: Name for `detserve.engines.load_engine`.
        image_paths: Encoded images, taken in turn.
        processes: How many processes.
        seconds: How long, after warming up.

    Raises:
        MeasureError: The file does not run.
    """
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(
            target=_process,
            args=(path, engine, list(image_paths), seconds, barrier, results),
            daemon=True,  # ends with this process, however that ends
        )
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    try:
        answers = [_next_answer(results, workers, seconds) for _ in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    failures = [answer for answer in answers if isinstance(answer, str)]
    if failures:  # the others' barrier is then broken: they say nothing
        raise MeasureError(f"{path.name} does not run with {engine}: {max(failures, key=len)}")
    detector = [value for answer in answers for value in answer["detector_s"]]
    total = [value for answer in answers for value in answer["total_s"]]
    p50, p99 = np.percentile(np.asarray(total) * 1e3, (50, 99))
    return Speed(
        detector_ms=statistics.median(detector) * 1e3,
        p50_ms=float(p50),
        p99_ms=float(p99),
        images_per_s=sum(len(a["total_s"]) / a["elapsed_s"] for a in answers),
        peak_memory_mb=max(answer["peak_memory_mb"] for answer in answers),
    )


def _next_answer(results: Any, workers: Sequence[Any], seconds: float) -> Any:
    deadline = time.monotonic() + _START_TIMEOUT + seconds
    while True:
        try:
            return results.get(timeout=1.0)
        except queue.Empty:
            dead = [w.exitcode for w in workers if w.exitcode not in (None, 0)]
            if dead:
                raise MeasureError(f"a measuring process ended with {dead[0]}") from None
            if time.monotonic() > deadline:
                raise MeasureError("a measuring process does not answer") from None
