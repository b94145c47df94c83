"""Cleans up after a server, whatever ended its launcher: also `kill -9`.

Runs as a process of its own, in a session of its own so that Ctrl-C on the terminal misses it:
`python _guardian.py LAUNCHER FOLDER PREFIX`. It waits until its standard input, a pipe that only
the launcher holds, ends, or the launcher's process does (a fork of the launcher may still hold
the pipe). Then it kills what is left of the server and removes what the server left behind.
Everything of a server is known by PREFIX: it is in the arguments of `tritonserver` and of its
stubs, and in the names of the shared memory segments. The lines on standard input are the names
of further folders to remove if they are empty.

Standard library only, and no imports of this package: it is started with `-I -S`.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_PROGRAMS = ("tritonserver", "triton_python_backend_stub")
_SHARED_MEMORY = Path("/dev/shm")
TEMPORARY = Path("/tmp")  # where Triton's Python backend makes its folders, whatever TMPDIR says


def processes(prefix: str) -> Iterator[tuple[int, list[str]]]:
    """The living processes of servers with this prefix, with their arguments."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it may be gone, or another user's
                # A zombie has no arguments, so it does not count as living.
                raw = (folder / "cmdline").read_bytes().split(b"\0")
                if Path(os.fsdecode(raw[0])).name not in _PROGRAMS:
                    continue
                arguments = [os.fsdecode(part) for part in raw]
                if any(prefix in part for part in arguments):
                    yield int(folder.name), arguments


def sweep(prefix: str, patience: float = 10.0) -> None:
    """Kill every process of a server and remove its shared memory.

    Args:
        prefix: The server's.
        patience: How long to wait for killed processes to be gone, in seconds.
    """
    deadline = time.monotonic() + patience
    while (alive := [pid for pid, _ in processes(prefix)]) and time.monotonic() < deadline:
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    if _SHARED_MEMORY.is_dir():
        for segment in _SHARED_MEMORY.glob(f"{prefix}*"):
            segment.unlink(missing_ok=True)


def clean(prefix: str, folder: Path, empty_folders: list[str]) -> None:
    """Remove everything of a server.

    Args:
        prefix: The server's.
        folder: Its temporary folder.
        empty_folders: Further folders to remove if they are empty.
    """
    sweep(prefix)
    shutil.rmtree(folder, ignore_errors=True)
    for name in empty_folders:
        with contextlib.suppress(OSError):
            Path(name).rmdir()
    # Those of a reloaded model, too. Their names do not tell whose they are, so only where nobody
    # can own them: no Triton runs.
    if not any(processes("")):
        for stale in TEMPORARY.glob("python_env_*"):
            with contextlib.suppress(OSError):
                stale.rmdir()


def _wait_for_end(launcher: int) -> list[str]:
    """Wait for the end of the launcher; returns the folders it named until then."""
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN | select.POLLHUP)
    with contextlib.suppress(OSError):  # ProcessLookupError: dead already; ENOSYS: old kernel
        poll.register(os.pidfd_open(launcher), select.POLLIN)
    text = b""
    # The parent changes when the launcher dies; the time-out is for where there are no pidfds.
    while os.getppid() == launcher:
        for descriptor, _ in poll.poll(1000):
            if descriptor == sys.stdin.fileno():
                chunk = os.read(descriptor, 65536)
                if not chunk:
                    return os.fsdecode(text).splitlines()
                text += chunk
    return os.fsdecode(text).splitlines()


def main() -> None:
    """Wait for the launcher's end, then clean up."""
    launcher, folder, prefix = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    clean(prefix, folder, _wait_for_end(launcher))


if __name__ == "__main__":
    main()
