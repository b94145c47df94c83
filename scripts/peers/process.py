"""A peer's service as processes of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from peers.errors import ComparisonError
from peers.service import FOLDER_VARIABLE
from peers.settings import Setting

__all__ = ["PeerProcess", "free_port"]

_SCRIPTS = Path(__file__).resolve().parents[1]
_ROOT = _SCRIPTS.parent
_START_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 15
_ATTEMPTS = 5  # at finding a port that nobody takes before it is bound


class _PortTakenError(ComparisonError):
    """Another process was faster."""


class PeerProcess:
    """A service that runs, with all its processes in one group, until the block ends.

    While it is idle it is stopped (SIGSTOP), so that it takes no processor time from the one that
    is measured: some services poll their queues. `resume` lets it go on.
    """

    def __init__(self, setting: Setting, repository: Path) -> None:
        """Say what to run.

        Args:
            setting: Which peer, and how.
            repository: The model repository that it takes the pipeline from.
        """
        self.setting = setting
        self._repository = repository.resolve()
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        """Where it takes images."""
        return f"http://127.0.0.1:{self._port}/predict"

    @property
    def pid(self) -> int:
        """Its first process, which leads the group."""
        return self._running.pid

    def __enter__(self) -> Self:
        # Its own folder for temporary files: a service that is killed leaves its sockets there.
        # In /tmp, for the system takes no socket whose path has more than 107 bytes.
        prefix = f"detserve-peer-{os.getpid()}-"
        self._folder = tempfile.TemporaryDirectory(prefix=prefix, dir="/tmp")
        try:
            for attempt in range(_ATTEMPTS):
                try:
                    self._start(Path(self._folder.name) / "log")
                    break
                except _PortTakenError:
                    self._end()
                    if attempt == _ATTEMPTS - 1:
                        raise
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def resume(self) -> None:
        """Let it work."""
        os.killpg(self.pid, signal.SIGCONT)

    def pause(self) -> None:
        """Stop it where it is."""
        os.killpg(self.pid, signal.SIGSTOP)

    def cpu_s(self) -> float:
        """Processor seconds that its processes have used."""
        first = psutil.Process(self.pid)
        times = [process.cpu_times() for process in (first, *first.children(recursive=True))]
        return sum(float(each.user + each.system) for each in times)

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ComparisonError(f"{self.setting.peer} is not started")
        return self._process

    def _start(self, log: Path) -> None:
        self._port = free_port()
        paths = [_SCRIPTS, _ROOT, _ROOT / "clients"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", f"peers.{self.setting.peer}_service"),
                    *("--model-repository", str(self._repository), "--port", str(self._port)),
                    *self.setting.arguments,
                ],
                stdin=subprocess.PIPE,  # that it closes ends the service, see `end_with_parent`
                stdout=output,
                stderr=output,
                # A group in this session: should this process be killed while the group is stopped,
                # the system lets it go on, as every group that loses its parent, and so end.
                process_group=0,
                cwd=log.parent,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(map(str, paths)),
                    "TMPDIR": str(log.parent),
                    FOLDER_VARIABLE: str(log.parent),
                },
            )
        self._wait_until_healthy(log)

    def _wait_until_healthy(self, log: Path) -> None:
        name = f"{self.setting.peer} ({self.setting.title})"
        end = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < end:
            if (status := self._running.poll()) is not None:
                said = log.read_text(errors="replace").strip()
                kind = _PortTakenError if "already in use" in said.lower() else ComparisonError
                last = " ".join(said.splitlines()[-1:])
                raise kind(f"{name} ended with status {status} while it started: {last}")
            try:
                url = f"http://127.0.0.1:{self._port}/health"
                with urllib.request.urlopen(url, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise ComparisonError(f"{name} was not healthy within {_START_TIMEOUT_S} s")

    def _stop(self) -> None:
        self._end()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _end(self) -> None:
        if (process := self._process) is not None:
            assert process.stdin is not None
            if process.poll() is None:
                self.resume()
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_TIMEOUT_S)
            with contextlib.suppress(ProcessLookupError):  # whatever is left of the group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdin.close()
            self._process = None


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
