"""The launcher's side of the guardian: what must go when the server ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from local_server import _guardian


class Leftovers:
    """A server's temporary folder and prefix, and the process that cleans up in the end.

    Attributes:
        folder: A new temporary folder.
        prefix: What this server's processes and shared memory segments are known by.
    """

    def __init__(self) -> None:
        self.prefix = f"detserve-{os.getpid()}-{secrets.token_hex(4)}"
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.prefix}-"))
        self._empty_folders: set[str] = set()
        arguments = [str(os.getpid()), str(self.folder), self.prefix]
        try:
            self._guardian = subprocess.Popen(
                [sys.executable, "-I", "-S", _guardian.__file__, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        except OSError:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def clean(self) -> None:
        """Have everything cleaned up; returns when it is."""
        assert self._guardian.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._guardian.stdin.close()
        if self._guardian.wait() != 0:  # somebody killed it
            _guardian.clean(self.prefix, self.folder, sorted(self._empty_folders))

    def note_folders(self, before: set[str], since: float) -> None:
        """Note the folders that a Triton that has just started made for its Python backends.

        It removes them when it ends in order, but not when it is killed. Their names do not tell
        whose they are, so where another Triton started at the same time they are left alone.

        Args:
            before: `python_environments` before the start.
            since: When the start began, in seconds since the epoch.
        """
        new = python_environments() - before - self._empty_folders
        if not new or _another_started(self.prefix, since):
            return
        self._empty_folders |= new
        assert self._guardian.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._guardian.stdin.write("".join(f"{name}\n" for name in sorted(new)).encode())
            self._guardian.stdin.flush()


def python_environments() -> set[str]:
    """The folders that Python backends made for packed environments."""
    return {str(path) for path in _guardian.TEMPORARY.glob("python_env_*")}


def _another_started(prefix: str, since: float) -> bool:
    """Whether a Triton that is not ours started in the 10 s before `since` or later."""
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    ticks = os.sysconf("SC_CLK_TCK")
    for pid, arguments in _guardian.processes(""):
        if Path(arguments[0]).name != "tritonserver" or any(prefix in part for part in arguments):
            continue
        with contextlib.suppress(OSError):  # it may be gone
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if boot + int(fields[19]) / ticks > since - 10:
                return True
    return False
