"""Tritons with launchers of their own, to be killed and started again at the same ports."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from local_server._guardian import processes
from local_server._watch import stubs

__all__ = ["Launcher", "ServerFailedError", "free_ports", "launchers", "lean_repository"]

ROOT = Path(__file__).resolve().parents[2]
_NAMES = ("http", "grpc", "metrics", "health")
_START_S = 120.0
_STOP_S = 30.0
_COUNT = re.compile(r'^nv_inference_request_success\{model="([^"]+)".*\} (\d+)', re.MULTILINE)


class ServerFailedError(Exception):
    """A server does not start."""


def free_ports(count: int) -> list[int]:
    """Different ports of this machine that were free a moment ago."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in held]


def lean_repository(source: Path, target: Path) -> None:
    """Copy a model repository for one of several servers that share the cores.

    With one instance of each model, and with time to wait in queues: what is refused or late for
    want of cores would hide what a failure costs.
    """

    def link(file: str, copy: str) -> str:
        if file.endswith((".onnx", ".plan")):
            Path(copy).symlink_to(Path(file).resolve())
            return copy
        return str(shutil.copy2(file, copy))

    shutil.copytree(source, target, copy_function=link)
    for config in target.glob("*/config.pbtxt"):
        text = re.sub(r"\bcount: \d+", "count: 1", config.read_text())
        text = re.sub(r"\b(default_timeout_microseconds): \d+", r"\1: 10000000", text)
        config.write_text(text)


class Launcher:
    """`python -m local_server` on ports that stay the same.

    Args:
        repository: The model repository.
        log: Where its output goes.
        ports: Its ports by their names; any free ones where they are not given.

    Attributes:
        ports: Its ports: ``http``, ``grpc``, ``metrics``, ``health``.
    """

    def __init__(self, repository: Path, log: Path, ports: Mapping[str, int] | None = None) -> None:
        self.ports = dict(ports or zip(_NAMES, free_ports(4), strict=True))
        self._repository = repository
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def entry(self) -> str:
        """Itself in BALANCER_TRITONS."""
        return f"127.0.0.1:{self.ports['http']}:{self.ports['grpc']}:{self.ports['health']}"

    def url(self, protocol: str) -> str:
        """Where Triton speaks ``grpc`` or ``http``."""
        return f"{protocol}://127.0.0.1:{self.ports[protocol]}"

    @property
    def prefix(self) -> str:
        """What its Triton and its stubs are known by."""
        assert self._process is not None
        return f"detserve-{self._process.pid}-"

    def start(self) -> None:
        """Start it; `wait_until_healthy` tells when it works."""
        command = [sys.executable, "-m", "local_server"]
        repository = f"--model-repository={self._repository}"
        ports = [f"--{name}-port={port}" for name, port in self.ports.items()]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, repository, *ports],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def healthy(self) -> bool:
        """Whether its health endpoint says that every model works."""
        try:
            with urllib.request.urlopen(f"{self._base('health')}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def ready(self) -> bool:
        """Whether Triton itself calls the ensemble ready."""
        try:
            url = f"{self._base('http')}/v2/models/detection/ready"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_until_healthy(self, timeout: float = _START_S) -> None:
        """Wait until every model works.

        Raises:
            ServerFailedError: It ends, or takes too long.
        """
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while not self.healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = self._log.read_text(errors="replace")[-500:]
                raise ServerFailedError(f"a Triton does not start: {tail}")
            time.sleep(0.05)

    def wait_for_model(self, model: str, timeout: float = _START_S) -> None:
        """Wait until a model has a process.

        Raises:
            ServerFailedError: It gets none.
        """
        deadline = time.monotonic() + timeout
        while model not in stubs(self.prefix).values():
            if time.monotonic() > deadline:
                raise ServerFailedError(f"the model {model} does not come back")
            time.sleep(0.05)

    def answered(self, model: str) -> int:
        """How many requests for a model it has answered since its start; 0 where it is down."""
        try:
            with urllib.request.urlopen(f"{self._base('metrics')}/metrics", timeout=1) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, OSError):
            return 0
        return sum(int(count) for name, count in _COUNT.findall(text) if name == model)

    def kill_model(self, model: str) -> int:
        """Kill the processes of a model as they are now; how many there were."""
        pids = [pid for pid, name in stubs(self.prefix).items() if name == model]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    @contextmanager
    def frozen_launcher(self) -> Iterator[None]:
        """Stop the launcher, not its Triton: nobody mends what breaks, and health is silent."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the launcher and its Triton at once, as if the machine were gone."""
        if self._process is None:
            return
        pids = [pid for pid, _ in processes(self.prefix)]
        self._process.kill()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._wait_until_clean()

    def stop(self) -> None:
        """End it in order."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._wait_until_clean()

    def _wait_until_clean(self) -> None:
        deadline = time.monotonic() + _STOP_S
        while any(processes(self.prefix)) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _base(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"


@contextmanager
def launchers(count: int, repository: Path) -> Iterator[list[Launcher]]:
    """Several servers that work, with one instance of each model; all end with the context.

    Raises:
        ServerFailedError: One does not start.
    """
    with tempfile.TemporaryDirectory(prefix="detserve-servers-") as name, ExitStack() as stack:
        lean = Path(name) / "model_repository"
        lean_repository(repository, lean)
        ports = free_ports(4 * count)
        servers = []
        for index in range(count):
            own = dict(zip(_NAMES, ports[4 * index :], strict=False))
            server = Launcher(lean, Path(name) / f"triton-{index + 1}.log", own)
            stack.callback(server.stop)
            server.start()
            servers.append(server)
        for server in servers:
            server.wait_until_healthy()
        yield servers
