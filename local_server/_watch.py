"""Watches processes end and stop, without asking them anything."""

from __future__ import annotations

import contextlib
import os
import re
import select
import time
from collections.abc import Iterable
from pathlib import Path

from local_server._guardian import processes


def stubs(prefix: str) -> dict[int, str]:
    """The processes that run Python models.

    Args:
        prefix: The prefix of their shared memory segments.

    Returns:
        For each process the name of its model.
    """
    # Arguments of a stub: program, <repository>/<model>/<version>/<file>, segment, sizes, parent,
    # folder, offset, instance, backend.
    found = {}
    for pid, arguments in processes(prefix):
        if Path(arguments[0]).name != "tritonserver" and len(arguments) > 1:
            path = Path(arguments[1])
            if len(path.parts) > 3 and re.fullmatch(r"\d+", path.parent.name):
                found[pid] = path.parent.parent.name
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """The CPU time that processes have used, together; those that are gone count as none."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, as by SIGSTOP; a debugger's stop does not count."""
    return _state(pid) == "T"


def _state(pid: int) -> str | None:
    """The state of a process, as the kernel abbreviates it; None if there is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return None


class Watch:
    """Tells which of a set of processes have ended or stay stopped.

    Args:
        patience: How long a process may be stopped, in seconds.
    """

    def __init__(self, patience: float = 0.5) -> None:
        self._patience = patience
        self._descriptors: dict[int, int] = {}  # process -> pidfd
        self._without_descriptor: set[int] = set()  # looked for in /proc instead
        self._stopped: dict[int, float] = {}  # process -> since when
        self._poll = select.poll()

    def watch(self, pids: set[int]) -> set[int]:
        """Watch these processes and no others.

        Args:
            pids: The processes.

        Returns:
            Those of them that have ended already.
        """
        for pid in self._descriptors.keys() - pids:
            self._drop(pid)
        self._without_descriptor.clear()
        gone = set()
        for pid in pids - self._descriptors.keys():
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                gone.add(pid)
                continue
            except OSError:  # an old kernel, a sandbox, or no descriptors left
                self._without_descriptor.add(pid)
                continue
            self._descriptors[pid] = descriptor
            self._poll.register(descriptor, select.POLLIN)
        return gone

    def wait(self, timeout: float) -> tuple[set[int], set[int]]:
        """Wait until a process ends.

        Args:
            timeout: How long to wait, in seconds.

        Returns:
            The processes that have ended, no longer watched, and those that are stopped and have
            been for longer than the patience.
        """
        ready = {descriptor for descriptor, _ in self._poll.poll(timeout * 1000)}
        ended = {pid for pid, descriptor in self._descriptors.items() if descriptor in ready}
        for pid in ended:
            self._drop(pid)
        ended |= {pid for pid in self._without_descriptor if _state(pid) in (None, "Z")}
        now = time.monotonic()
        self._stopped = {
            pid: self._stopped.get(pid, now)
            for pid in self._descriptors.keys() | self._without_descriptor - ended
            if is_stopped(pid)
        }
        return ended, {pid for pid, since in self._stopped.items() if now - since >= self._patience}

    def close(self) -> None:
        """Watch nothing any more."""
        self.watch(set())

    def _drop(self, pid: int) -> None:
        descriptor = self._descriptors.pop(pid)
        self._poll.unregister(descriptor)
        os.close(descriptor)
