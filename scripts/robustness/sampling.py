"""Samples of everything that a service uses, taken again and again over a soak."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil

from robustness.processes import (
    Usage,
    server_processes,
    shared_memory,
    temporary_folders,
    usage,
)
from robustness.service import Service

__all__ = ["LOAD", "Sample", "Sampler"]

LOAD = "load generator"


@dataclass(frozen=True, slots=True)
class Sample:
    """What is used at one moment.

    Attributes:
        t_s: Seconds from the start of the load.
        pids: The processes, by what each is.
        usage: What each uses; one that has just ended is left out.
        shm_bytes: Bytes in the server's shared memory segments.
        shm_segments: Number of these.
        folders: Number of its temporary folders.
        busy: Share of the cores' time since the last sample that anything ran.
        steal: Share that the hypervisor gave to other machines.
        triton: Requests the ensemble has answered and failed.
    """

    t_s: float
    pids: dict[str, int]
    usage: dict[str, Usage]
    shm_bytes: int
    shm_segments: int
    folders: int
    busy: float
    steal: float
    triton: dict[str, int] = field(default_factory=dict)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Rows for CSV, one a process."""
        for name, used in self.usage.items():
            yield {"t_s": round(self.t_s, 1), "process": name, "pid": self.pids[name]} | (
                used.as_dict()
            )


class Sampler:
    """Takes samples of a service and of this process, its load generator."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._times = psutil.cpu_times()
        self.start = time.perf_counter()

    def take(self) -> Sample:
        """Take one."""
        launcher = self._service.launcher.pid
        pids = server_processes(launcher)
        pids |= {"gateway": self._service.gateway.pid, LOAD: os.getpid()}
        used = {name: found for name, pid in pids.items() if (found := usage(pid)) is not None}
        segments = shared_memory(launcher)
        busy, steal = self._shares()
        return Sample(
            t_s=time.perf_counter() - self.start,
            pids=pids,
            usage=used,
            shm_bytes=sum(segments.values()),
            shm_segments=len(segments),
            folders=len(temporary_folders(launcher)),
            busy=busy,
            steal=steal,
            triton=self._service.statistics(),
        )

    def _shares(self) -> tuple[float, float]:
        now, before = psutil.cpu_times(), self._times
        self._times = now
        spent = {name: getattr(now, name) - getattr(before, name) for name in now._fields}
        # The kernel counts guests in user time as well.
        total = sum(value for name, value in spent.items() if not name.startswith("guest"))
        if total <= 0:
            return 0.0, 0.0
        idle = spent["idle"] + spent["iowait"]
        return 1 - (idle + spent["steal"]) / total, spent["steal"] / total
