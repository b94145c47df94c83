"""Which values of a setting are worth trying on a machine."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from detserve.repository import DetectorRepository
from tuning.settings import AUTO, OFF, STAGES, Configs, Plan

__all__ = ["Machine", "candidates", "queue_candidates"]

_LEAST_BATCH = 8  # what clients may send in a request at least
_BATCHED = ("onnxruntime", "tensorrt")  # OpenVINO's backend would pad every batch
_CPU_DELAYS, _GPU_DELAYS = (0, 500, 2000), (0, 200, 1000, 5000)


@dataclass(frozen=True)
class Machine:
    """What the candidates depend on.

    Attributes:
        cores: That this process may use.
        kind: Where the detector runs: "cpu" or "gpu".
        backend: What runs it.
        shares_cores: Whether instances of the detector divide the cores where no threads are set,
            as in the backends that stand in for Triton's.
        min_instances: Of every step: with two, one that dies costs no more than its own requests.
        kept_batching: Stages whose dynamic batching holds queue policies or priorities: it stays.
    """

    cores: int
    kind: str
    backend: str
    shares_cores: bool = True
    min_instances: int = 2
    kept_batching: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls, repository: DetectorRepository, configs: Configs, kind: str, min_instances: int
    ) -> Machine:
        """This one, with an ensemble; `kind` "auto" goes by the detector's configuration."""
        if kind == "auto":
            kind = _kind(repository)
        kept = {stage for stage in STAGES if _has_policy(configs, stage)}
        cores = len(os.sched_getaffinity(0))
        shares_cores = shutil.which("tritonserver") is None  # with its own backends
        return cls(cores, kind, repository.backend, shares_cores, min_instances, frozenset(kept))


def _kind(repository: DetectorRepository) -> str:
    groups = repository.detector.instance_group
    kinds = {type(group).Kind.Name(group.kind) for group in groups}
    if repository.backend == "tensorrt" or "KIND_GPU" in kinds:
        return "gpu"
    if repository.backend == "openvino" or "KIND_CPU" in kinds:
        return "cpu"
    return "gpu" if Path("/dev/nvidiactl").exists() else "cpu"


def _has_policy(configs: Configs, stage: str) -> bool:
    """Whether dynamic batching does more than batch."""
    own = {"preferred_batch_size", "max_queue_delay_microseconds"}
    return any(
        descriptor.name not in own for descriptor, _ in configs[stage].dynamic_batching.ListFields()
    )


def candidates(name: str, machine: Machine, plan: Plan) -> list[int | str]:
    """Values to try for a setting; the one that the plan has is not among them.

    Args:
        name: Of the setting; queue sizes have candidates of their own.
        machine: What it runs on.
        plan: The values of all settings at the moment.
    """
    stage, _, what = name.partition(".")
    match what:
        case "instances":
            values = _instances(stage, machine)
        case "threads":
            values = _threads(machine, plan)
        case "batching_delay_us":
            values = _delays(stage, machine)
        case "preferred_batch_size":
            values = _preferred(stage, machine, plan)
        case "max_batch_size":
            values = _max_batches(machine, plan)
        case _:
            values = []
    return [value for value in dict.fromkeys(values) if value != plan[name]]


def _instances(stage: str, machine: Machine) -> list[int | str]:
    cores = machine.cores
    if stage == "detector" and machine.kind == "gpu":
        counts = {1, 2, 3, 4}
    elif stage == "detector":
        counts = {1, cores // 2, cores, cores + (cores + 1) // 2, 2 * cores}
    else:
        counts = {1, cores // 2, cores, 2 * cores}
    return [*sorted({max(machine.min_instances, count) for count in counts})]


def _threads(machine: Machine, plan: Plan) -> list[int | str]:
    if machine.kind == "gpu":
        return []
    share = max(1, machine.cores // int(plan["detector.instances"]))
    counts = {1, 2, share, machine.cores // 2, machine.cores}
    if machine.shares_cores:  # then the share is what AUTO means
        counts.discard(share)
        if plan["detector.threads"] == share:
            return [*sorted(count for count in counts if 0 < count <= machine.cores)]
    return [AUTO, *sorted(count for count in counts if 0 < count <= machine.cores)]


def _delays(stage: str, machine: Machine) -> list[int | str]:
    if not _batches(stage, machine):
        return []
    off: list[int | str] = [] if stage in machine.kept_batching else [OFF]
    if stage == "detector":
        return [*off, *_GPU_DELAYS] if machine.kind == "gpu" else [*off, 0]
    if stage == "postprocess":
        return [*off, 0]
    return [*off, *_CPU_DELAYS]


def _batches(stage: str, machine: Machine) -> bool:
    """Whether a step can put requests together; OpenVINO's has dynamic batching for its queue."""
    return stage != "detector" or machine.backend in _BATCHED


def _preferred(stage: str, machine: Machine, plan: Plan) -> list[int | str]:
    """Sizes of batches: also with no delay Triton makes none greater than the greatest of them."""
    if plan[f"{stage}.batching_delay_us"] == OFF or not _batches(stage, machine):
        return []
    greatest = int(plan["ensemble.max_batch_size"])
    if stage == "detector" and machine.kind == "gpu":
        return ["", f"{max(1, greatest // 2)},{greatest}", str(max(1, greatest // 4))]
    sizes = {1, 4} if stage == "detector" else {1, min(greatest, 2 * machine.cores)}
    return ["", *map(str, sorted(sizes))]


def _max_batches(machine: Machine, plan: Plan) -> list[int | str]:
    # It matters where batches of any size are made.
    if not any(
        plan[f"{stage}.batching_delay_us"] != OFF and plan[f"{stage}.preferred_batch_size"] == ""
        for stage in STAGES
        if _batches(stage, machine)
    ):
        return []
    now = int(plan["ensemble.max_batch_size"])
    sizes = {8, 16, 32, 64} if machine.kind == "gpu" else {8, 16}
    if machine.backend == "tensorrt":  # the plan's profile ends somewhere
        sizes = {size for size in sizes if size <= now}
    return [*sorted(size for size in sizes if size >= min(_LEAST_BATCH, now))]


def queue_candidates(name: str, plan: Plan, images_per_s: float, slo_ms: float) -> list[int | str]:
    """Limits of a queue to try: about what is served, and what may pass, within the SLO's limit.

    Args:
        name: Of the setting: a queue's size, or how long a request may wait in it.
        plan: The values of all settings.
        images_per_s: What the ensemble reaches.
        slo_ms: Within which a request has to be answered, in milliseconds.
    """
    stage, _, what = name.partition(".")
    values: set[int] = set()
    if plan.get(f"{stage}.batching_delay_us", OFF) == OFF:  # Triton has no queue to limit then
        return []
    if what == "max_queue_size" and (stage != STAGES[0] or plan[name]):
        # Not of the first step, unless it has one: Triton before 24.12 can crash when that refuses
        # a request just as its deadline expires.
        served = images_per_s * slo_ms / 1e3
        values = {max(1, round(served * share)) for share in (0.25, 0.5, 1)}
    elif what == "queue_timeout_us" and plan[name]:
        values = {round(slo_ms * 1e3 * share) for share in (0.25, 0.5, 1)}
    return [value for value in sorted(values) if value != plan[name]]
