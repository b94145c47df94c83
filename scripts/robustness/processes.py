"""The processes of a service, what each uses, and what dead ones have left behind."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = [
    "Usage",
    "left_behind",
    "server_processes",
    "shared_memory",
    "stubs_of",
    "temporary_folders",
    "usage",
]

SHARED_MEMORY = Path("/dev/shm")
TEMPORARY = Path("/tmp")
_TRITON = "tritonserver"
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process uses.

    Attributes:
        rss: Memory in RAM, in bytes, all that is shared included.
        pss: The same, with what is shared split among those that share it.
        uss: What is its alone.
        threads: Number of threads.
        files: Number of open file descriptors.
    """

    rss: int
    pss: int
    uss: int
    threads: int
    files: int

    def as_dict(self) -> dict[str, int]:
        """For JSON and CSV."""
        return asdict(self)


def usage(pid: int) -> Usage | None:
    """What a process uses; None if it is gone."""
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        with process.oneshot():
            memory = process.memory_full_info()
            return Usage(
                memory.rss, memory.pss, memory.uss, process.num_threads(), process.num_fds()
            )
    return None


def stubs_of(launcher: int) -> dict[int, str]:
    """The processes of the Python models of a launcher's Triton, each with its model."""
    found = {}
    for pid, arguments in _descendants(launcher):
        if Path(arguments[0]).name == _STUB and len(arguments) > 1:
            found[pid] = Path(arguments[1]).parent.parent.name
    return found


def server_processes(launcher: int) -> dict[str, int]:
    """The processes of a server, by what each is; several of a model are numbered."""
    found = {"launcher": launcher}
    for pid, arguments in _descendants(launcher):
        if Path(arguments[0]).name == _TRITON:
            found["triton"] = pid
        elif any(Path(part).name == "_guardian.py" for part in arguments):
            found["cleaner"] = pid
    numbers: dict[str, int] = defaultdict(int)
    for pid, model in sorted(stubs_of(launcher).items()):
        numbers[model] += 1
        found[f"{model} {numbers[model]}"] = pid
    return found


def shared_memory(launcher: int) -> dict[str, int]:
    """The shared memory segments of a launcher's servers, with the bytes that each takes."""
    found = {}
    for segment in SHARED_MEMORY.glob(f"detserve-{launcher}-*"):
        with contextlib.suppress(FileNotFoundError):
            found[segment.name] = segment.stat().st_blocks * 512
    return found


def temporary_folders(launcher: int) -> list[str]:
    """The temporary folders of a launcher.

    Those of Triton's Python backends are not among them: their names do not tell whose they are.
    """
    return sorted(map(str, TEMPORARY.glob(f"detserve-{launcher}-*")))


def left_behind(launchers: Iterable[int], living: int | None) -> list[str]:
    """What launchers that have ended, or former Tritons of one that lives, have left.

    Args:
        launchers: All launchers there have been.
        living: The one that runs.
    """
    found = []
    for launcher in launchers:
        prefix = f"detserve-{launcher}-"
        current = _generation(launcher) if launcher == living else None
        for segment in SHARED_MEMORY.glob(f"{prefix}*"):
            if current is None or not segment.name.startswith(current):
                found.append(f"shared memory {segment.name}")
        for pid, arguments in _with_argument(prefix):
            if current is None or not any(current in part for part in arguments):
                if launcher == living and Path(arguments[0]).name not in (_TRITON, _STUB):
                    continue  # its cleaner
                found.append(f"process {pid} {Path(arguments[0]).name}")
        if launcher != living:
            found += [f"folder {path}" for path in TEMPORARY.glob(f"{prefix}*")]
    return found


def _generation(launcher: int) -> str | None:
    """The prefix of the segments of the Triton that a launcher runs now."""
    for _, arguments in _descendants(launcher):
        if Path(arguments[0]).name == _TRITON:
            match = re.search(r"shm-region-prefix-name=(\S+)", " ".join(arguments))
            return match[1] if match else None
    return None


def _descendants(launcher: int) -> list[tuple[int, list[str]]]:
    with contextlib.suppress(psutil.Error):
        return _commands(psutil.Process(launcher).children(recursive=True))
    return []


def _with_argument(text: str) -> list[tuple[int, list[str]]]:
    found = _commands(psutil.process_iter())
    return [(pid, arguments) for pid, arguments in found if any(text in p for p in arguments)]


def _commands(processes: Iterable[Any]) -> list[tuple[int, list[str]]]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            arguments = process.cmdline()
            if arguments and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process.pid, arguments))
    return found
