"""One run of the `tritonserver` program, from its start to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from local_server._errors import PortRaceError, ServerError
from local_server._guardian import sweep
from local_server._http import Connection
from local_server._log import Log, failure
from local_server._ports import Ports
from local_server._triton import Triton

# Triton's endpoints that are no business of a client's: they load and unload models, map shared
# memory of the machine, and set what is traced and logged, and into which file.
CLOSED = ("model-repository", "shared-memory", "trace", "logging")


class TritonProcess:
    """A running Triton.

    Args:
        triton: The program and its environment.
        arguments: Its arguments.
        prefix: The prefix of its shared memory segments, which tells its processes.
        log: Takes its output.
    """

    def __init__(self, triton: Triton, arguments: Sequence[str], prefix: str, log: Log) -> None:
        self._log = log
        self._prefix = prefix
        # A session of its own: Ctrl-C on the terminal must reach the launcher alone, which then
        # ends Triton in order.
        self._process = subprocess.Popen(
            [str(triton.executable), *arguments],
            env={**os.environ, **triton.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name="triton-log", daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def end(self) -> str:
        """How it ended, in words."""
        code = self._process.wait()
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"exited with status {code}"

    def wait_until_ready(self, connection: Connection, timeout: float) -> None:
        """Wait until Triton says that it is ready: every model loaded, every port bound.

        Args:
            connection: To its HTTP port.
            timeout: How long to wait, in seconds.

        Raises:
            PortRaceError: If somebody else bound one of its ports first.
            ServerError: If it ends, or is not ready in time.
        """
        deadline = time.monotonic() + timeout
        while not connection.ready():
            if not self.alive:
                self._reader.join(5)
                lines = self._log.lines()
                message = f"Triton {self.end()} while starting:\n{failure(lines)}"
                if any("already in use" in line for line in lines):
                    raise PortRaceError(message)
                raise ServerError(message)
            if time.monotonic() > deadline:
                raise ServerError(
                    f"Triton is not ready after {timeout:.0f} s:\n{failure(self._log.lines())}"
                )
            time.sleep(0.02)

    def stop(self, drain_timeout: float, unload_timeout: float = 5.0) -> None:
        """End it in order: requests in flight are answered, new ones are refused.

        A model whose stub died with a request in flight never unloads, so waiting for that is
        bounded more tightly.

        Args:
            drain_timeout: How long to wait for requests in flight, in seconds.
            unload_timeout: How long to wait for the models to unload, in seconds.
        """
        if self.alive:
            self._process.terminate()
            deadline = time.monotonic() + drain_timeout + unload_timeout
            unloading: float | None = None
            while self.alive and time.monotonic() < deadline:
                if unloading is None and any(
                    "All models are stopped" in line for line in self._log.lines()[-50:]
                ):
                    unloading = time.monotonic()
                    deadline = min(deadline, unloading + unload_timeout)
                time.sleep(0.02)
        self.kill()

    def kill(self) -> None:
        """End it at once, with its stubs, and remove its shared memory."""
        if self.alive:
            self._process.kill()
        sweep(self._prefix)
        self._process.wait()
        self._reader.join(5)

    def interrupt(self) -> None:
        """End it at once without waiting; for signal handlers."""
        if self.alive:
            self._process.kill()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                self._log.add(line.decode(errors="replace").rstrip("\n"))


def server_arguments(
    *,
    model_repository: Path,
    backends: Path,
    caches: Path,
    host: str,
    ports: Ports,
    prefix: str,
    cache_mb: float,
    secret: str,
    open_to_clients: Mapping[str, bool],
    drain_timeout: float,
    models: Sequence[str] | None = None,
) -> list[str]:
    """The arguments of `tritonserver`.

    Args:
        model_repository: The models.
        backends: The folder of backends.
        caches: The folder of response caches.
        host: Address to bind.
        ports: Ports of the endpoints.
        prefix: Prefix of the shared memory segments.
        cache_mb: Size of the response cache, in MiB; 0 for none.
        secret: Needed for the endpoints that are closed to clients: those of `CLOSED`.
        open_to_clients: Which of them are open nevertheless.
        drain_timeout: How long requests in flight may take at the end, in seconds.
        models: The models to load at the start; None for all.
    """
    arguments = [
        f"--model-repository={model_repository}",
        f"--backend-directory={backends}",
        f"--http-address={host}",
        f"--http-port={ports.http}",
        f"--grpc-address={host}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-address={host}",
        f"--metrics-port={ports.metrics}",
        # Else every stub is started twice; the configurations of the repository are complete.
        "--disable-auto-complete-config",
        # Quantiles of each step's times over the last minute, for `make status`.
        "--metrics-config=summary_latencies=true",
        # Healing reloads single models.
        "--model-control-mode=explicit",
        *(f"--load-model={model}" for model in (["*"] if models is None else models)),
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        f"--exit-timeout-secs={max(1, round(drain_timeout))}",
    ]
    if caches.is_dir():
        arguments.append(f"--cache-directory={caches}")
    if cache_mb > 0:
        arguments.append(f"--cache-config=local,size={int(cache_mb * 2**20)}")
    closed = ",".join(name for name in CLOSED if not open_to_clients.get(name))
    arguments += [
        f"--http-restricted-api={closed}:{Connection.SECRET_HEADER}={secret}",
        f"--grpc-restricted-protocol={closed}:{Connection.SECRET_HEADER}={secret}",
    ]
    return arguments
