"""A server and a gateway as processes of their own, started again when they die.

The launcher brings back Triton and its models, but nobody in this project brings back a launcher
or a gateway that was killed: in production that is the container's restart policy. `Kept` stands
in for it.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from robustness.processes import left_behind

__all__ = ["Kept", "Service", "ServiceError", "free_ports"]

ROOT = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 40.0
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 5.0  # as Docker's restart policy: doubled each time
LASTING_S = 10.0


class ServiceError(Exception):
    """The service cannot be run; the message says why."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody has at the moment."""
    with ExitStack() as stack:
        held = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0), reuse_port=False))
            for _ in range(count)
        ]
        return [one.getsockname()[1] for one in held]


class Kept:
    """A process that is started again when it ends unasked.

    Attributes:
        pids: Of all its runs.
        log: The file with what it printed.

    Args:
        command: Its command line.
        log: A file for its output.
        environment: Variables to set.
    """

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._command = list(command)
        self._environment = {**os.environ, **(environment or {})}
        self.log = log
        self.pids: list[int] = []
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper = threading.Thread(target=self._keep, name="restart-policy", daemon=True)

    @property
    def pid(self) -> int:
        """The process of the last run."""
        return self.pids[-1]

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def stopped(self) -> bool:
        """Whether it has been asked to end."""
        return self._stopping.is_set()

    def start(self) -> None:
        """Start it."""
        self._start()
        self._keeper.start()

    def send(self, number: signal.Signals) -> int:
        """Send it a signal; returns the process that got it."""
        os.kill(pid := self.pid, number)
        return pid

    def stop(self) -> None:
        """End it in order, or at once where that takes long or is interrupted."""
        assert self._process is not None
        self._stopping.set()
        try:
            self._keeper.join()
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        finally:
            if self.alive:
                self._process.kill()
            self._process.wait()

    def tail(self, lines: int = 15) -> str:
        """The last lines that it printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                # A session of its own: Ctrl-C is for the command that runs it.
                start_new_session=True,
            )
        self.pids.append(self._process.pid)

    def _keep(self) -> None:
        pause, started = FIRST_PAUSE_S, time.monotonic()
        while not self._stopping.wait(0.02):
            if self.alive:
                continue
            if time.monotonic() - started > LASTING_S:
                pause = FIRST_PAUSE_S
            if self._stopping.wait(pause):
                return
            pause, started = min(2 * pause, LAST_PAUSE_S), time.monotonic()
            self._start()


class Service:
    """A server with a gateway before it, on ports that stay.

    Attributes:
        launcher: The launcher of the server.
        gateway: The gateway.
        helpers: Further processes by name, such as Redis.

    Args:
        repository: The model repository.
        folder: A folder for the logs.
        launcher_options: Further options of the launcher.
        gateway_options: Further options of the gateway.
        environment: Variables for both.
        wrapper: A command that runs the launcher, such as `unshare --mount`.
        helpers: Further processes that the gateway needs.
    """

    def __init__(
        self,
        repository: Path,
        folder: Path,
        *,
        launcher_options: Sequence[str] = (),
        gateway_options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        helpers: Mapping[str, Kept] | None = None,
    ) -> None:
        self.helpers = dict(helpers or {})
        http, grpc, metrics, health, self._gateway_port = free_ports(5)
        self.http_url, self.grpc_url = f"http://127.0.0.1:{http}", f"grpc://127.0.0.1:{grpc}"
        self.ports = {"HTTP": http, "gRPC": grpc, "gateway": self._gateway_port}
        self.health_url = f"http://127.0.0.1:{health}/health"
        self.gateway_url = f"http://127.0.0.1:{self._gateway_port}"
        ports = {"http": http, "grpc": grpc, "metrics": metrics, "health": health}
        self.launcher = Kept(
            [
                *(*wrapper, sys.executable, "-m", "local_server"),
                *("--model-repository", str(repository)),
                *(part for name, at in ports.items() for part in (f"--{name}-port", str(at))),
                *launcher_options,
            ],
            folder / "launcher.log",
            {"PYTHONPATH": str(ROOT), **(environment or {})},
        )
        self.gateway = Kept(
            [
                *(sys.executable, "-m", "gateway", "--server", self.grpc_url),
                *("--host", "127.0.0.1", "--port", str(self._gateway_port), *gateway_options),
            ],
            folder / "gateway.log",
            {"PYTHONPATH": f"{ROOT / 'clients'}{os.pathsep}{ROOT}", **(environment or {})},
        )

    def __enter__(self) -> Self:
        try:
            for helper in self.helpers.values():
                helper.start()
            self.launcher.start()
            self._wait_for(self.launcher, self.health_url)
            self.gateway.start()
            self._wait_for(self.gateway, f"{self.gateway_url}/health")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End all in order; harmless if they have ended."""
        with ExitStack() as stack:  # the others also where one is interrupted
            for kept in (*self.helpers.values(), self.launcher, self.gateway):
                if kept.pids and not kept.stopped:
                    stack.callback(kept.stop)

    def health(self) -> dict[str, Any] | None:
        """What the launcher's health endpoint answers; None if it does not."""
        return _document(self.health_url)[1]

    def problems(self) -> list[str]:
        """What is not well now, by both health endpoints; empty if all is well."""
        found = []
        for name, url in (("server", self.health_url), ("gateway", f"{self.gateway_url}/health")):
            status, document = _document(url)
            if status != 200:
                found.append(f"{name}: {_why(document) if document else 'no answer'}")
        return found

    def statistics(self) -> dict[str, int]:
        """How many requests the ensemble has answered and failed since it was loaded."""
        _, document = _document(f"{self.http_url}/v2/models/detection/stats")
        if document is None:
            return {"success": 0, "fail": 0}
        counts = document["model_stats"][0]["inference_stats"]
        return {name: int(counts[name].get("count", 0)) for name in ("success", "fail")}

    def left_behind(self) -> list[str]:
        """What dead processes of the server have left."""
        living = self.launcher.pid if self.launcher.alive else None
        return left_behind(self.launcher.pids, living)

    def _wait_for(self, kept: Kept, url: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while _document(url)[0] != 200:
            if len(kept.pids) > 3 or time.monotonic() > deadline:
                raise ServiceError(f"the {kept.log.stem} does not start:\n{kept.tail()}")
            time.sleep(0.05)


def _document(url: str) -> tuple[int, dict[str, Any] | None]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _parsed(error.read())
    except (OSError, http.client.HTTPException):
        return 0, None


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _why(document: Mapping[str, Any]) -> str:
    """What a health endpoint says is wrong."""
    if document.get("problem"):
        return str(document["problem"])
    parts = {**document.get("models", {}), **document.get("checks", {})}
    wrong = [
        f"{name}: {part.get('problem') or part.get('detail')}"
        for name, part in parts.items()
        if part.get("status") != "ok"
    ]
    return "; ".join(wrong) or str(document.get("status"))
