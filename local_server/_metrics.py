"""What the launcher tells Prometheus: health, healing, processes and shared memory.

Written by hand, as the launcher needs nothing beyond the standard library: a handful of metrics in
Prometheus's text format, version 0.0.4.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from local_server._guardian import processes
from local_server._watch import stubs

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SHARED_MEMORY = "/dev/shm"
_Family = tuple[str, str, str, list[tuple[dict[str, str], float]]]  # name, type, help, samples


def metrics_text(snapshot: Mapping[str, Any]) -> str:
    """The launcher's metrics.

    Args:
        snapshot: What the health endpoint answers.

    Returns:
        Them in Prometheus's text format.
    """
    lines = []
    for name, kind, help_text, samples in [*_health(snapshot), *_processes(), *_shared_memory()]:
        if not samples:
            continue
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
        for labels, value in samples:
            written = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            lines.append(f"{name}{{{written}}} {value:.15g}" if written else f"{name} {value:.15g}")
    return "\n".join(lines) + "\n"


def _health(snapshot: Mapping[str, Any]) -> Iterator[_Family]:
    models: Mapping[str, Mapping[str, Any]] = snapshot["models"]

    def of_models(key: str) -> list[tuple[dict[str, str], float]]:
        return [({"model": name}, state[key]) for name, state in models.items()]

    yield (
        "launcher_healthy", "gauge",
        "Whether every model answers an inference: what /health says",
        [({}, snapshot["status"] == "ok")],
    )  # fmt: skip
    yield (
        "launcher_triton_up", "gauge", "Whether Triton runs and has answered since its start",
        [({}, snapshot["problem"] is None)],
    )  # fmt: skip
    yield (
        "launcher_triton_restarts_total", "counter", "Starts of a Triton in place of one that died",
        [({}, snapshot["restarts"])],
    )  # fmt: skip
    yield (
        "launcher_model_healthy", "gauge", "Whether the model answers, with all of its instances",
        [({"model": name}, state["status"] == "ok") for name, state in models.items()],
    )  # fmt: skip
    yield (
        "launcher_model_failures_total", "counter",
        "Times that the model went from answering to not answering, or lost an instance",
        of_models("failures"),
    )  # fmt: skip
    yield (
        "launcher_model_reloads_total", "counter", "Times that the model was healed by loading it",
        of_models("reloads"),
    )  # fmt: skip
    answers = [
        ({"model": name}, datetime.fromisoformat(state["last_answer"]).timestamp())
        for name, state in models.items()
        if state["last_answer"] is not None
    ]
    yield (
        "launcher_model_last_answer_timestamp_seconds", "gauge",
        "When the model last answered an inference, in seconds since the epoch", answers,
    )  # fmt: skip


def _processes() -> Iterator[_Family]:
    """Triton's and its models' processes: all that this launcher has started."""
    prefix = f"detserve-{os.getpid()}-"
    models = stubs(prefix)
    counts: dict[str, int] = {}
    memory: dict[str, int] = {}
    for pid, _ in processes(prefix):
        name = models.get(pid, "tritonserver")
        with contextlib.suppress(OSError):  # it may have ended
            memory[name] = memory.get(name, 0) + _anonymous_bytes(pid)
            counts[name] = counts.get(name, 0) + 1
    yield (
        "launcher_processes", "gauge", "Living processes of Triton and of each Python model",
        [({"process": name}, count) for name, count in sorted(counts.items())],
    )  # fmt: skip
    yield (
        "launcher_process_anonymous_bytes", "gauge",
        "Memory of their own of these processes: without files, libraries and shared memory",
        [({"process": name}, size) for name, size in sorted(memory.items())],
    )  # fmt: skip


def _anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _shared_memory() -> Iterator[_Family]:
    """As Triton sees it: a container has a /dev/shm of its own, which no exporter outside sees."""
    try:
        space = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return
    used = (space.f_blocks - space.f_bfree) * space.f_frsize
    yield (
        "launcher_shm_size_bytes", "gauge", "Size of /dev/shm, which the Python models need",
        [({}, space.f_blocks * space.f_frsize)],
    )  # fmt: skip
    yield "launcher_shm_used_bytes", "gauge", "Used space of /dev/shm", [({}, used)]


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
