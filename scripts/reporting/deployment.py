"""From the detector as it was given to what Triton serves: base, optimised, production."""

from __future__ import annotations

import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from assembly import Serving, install
from benchmark import measure_ensemble, stage_models
from evaluation import Dataset, evaluate_server
from local_server import TritonServer
from machine import shared_memory_mb
from reporting.table import Row

__all__ = ["Stage", "measure_deployment"]

_CONCURRENCY = 4


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of the deployment's table.

    Attributes:
        name: Which.
        what: What runs.
        accuracy: As in the report's rows.
        p50_ms: Median latency of an image.
        images_per_s: Throughput.
        peak_memory_mb: Of all processes together, in MiB.
    """

    name: str
    what: str
    accuracy: float | None
    p50_ms: float
    images_per_s: float
    peak_memory_mb: float


def measure_deployment(
    base: Row, chosen_path: Path, chosen: Row, dataset: Dataset, seconds: float
) -> tuple[Stage, ...]:
    """Serve the chosen variant by a real Triton, and set it beside what was measured before.

    Args:
        base: The row of the detector as it was given.
        chosen_path: The recommended variant.
        chosen: Its row.
        dataset: The images.
        seconds: Length of one measurement.
    """
    stages = []
    for name, row in (("base", base), ("optimised", chosen)):
        if row.speed is not None:
            stages.append(
                Stage(
                    name=name,
                    what=f"{row.variant} in {row.engine}, in process",
                    accuracy=row.accuracy,
                    p50_ms=row.speed.p50_ms,
                    images_per_s=row.speed.images_per_s,
                    peak_memory_mb=row.speed.peak_memory_mb * len(os.sched_getaffinity(0)),
                )
            )
    with tempfile.TemporaryDirectory(prefix="detserve-report-") as folder:
        repository = Path(folder)
        install(chosen_path, repository, engine=chosen.engine, serving=Serving(instances=2))
        models = stage_models(repository)
        images = [image.path.read_bytes() for image in dataset.images][:64]
        with TritonServer(
            repository, http_port=0, grpc_port=0, metrics_port=0, health_port=0
        ) as server:
            served = evaluate_server(server.grpc_url, dataset)
            one = measure_ensemble(server, models, images, 1, seconds)
            with _PeakMemory(server) as memory:
                many = measure_ensemble(server, models, images, _CONCURRENCY, seconds)
    stages.append(
        Stage(
            name="production",
            what=f"{chosen.variant} in {chosen.engine}, served by Triton over gRPC: latency at"
            f" concurrency 1, throughput at {_CONCURRENCY}",
            accuracy=served.map,
            p50_ms=one["p50_ms"],
            images_per_s=many["images_per_s"],
            peak_memory_mb=memory.peak_mb,
        )
    )
    return tuple(stages)


class _PeakMemory:
    """Follows the memory of a server's processes while they work, without counting pages twice."""

    def __init__(self, server: TritonServer) -> None:
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mb = 0.0

    def __enter__(self) -> _PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            pids = [self._server.pid, *self._server.stub_pids()]
            self.peak_mb = max(self.peak_mb, sum(map(shared_memory_mb, pids)))
            if self._done.wait(0.5):
                return
