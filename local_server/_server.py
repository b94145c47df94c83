"""A Triton server as a context manager."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from local_server._errors import PortRaceError, ServerError
from local_server._health import HealthEndpoint
from local_server._log import Log
from local_server._ports import Ports, choose_ports
from local_server._run import Run, Settings
from local_server._state import ServerState
from local_server._supervisor import Supervisor

_ATTEMPTS = 5  # at finding ports that nobody takes before they are bound


class TritonServer:
    """A Triton that serves a model repository, is watched, and leaves nothing behind.

    `start` returns when every model has answered an inference. From then on a supervisor asks
    every model for one every second or so, watches the models' processes, and brings back what
    dies. A small process of its own cleans up if this one is killed.

    Args:
        model_repository: The folder of models.
        host: Address to bind; "0.0.0.0" for all.
        http_port: Port of the HTTP endpoint: None for Triton's default or, if that is taken, any
            free one; 0 for any free one; else this one or an error.
        grpc_port: Port of the gRPC endpoint, likewise.
        metrics_port: Port of the metrics endpoint, likewise.
        health_port: Port of the supervisor's health endpoint, likewise.
        cache_mb: Size of the response cache in MiB; 0 for none.
        log_file: Where Triton's whole log goes.
        show: Called with each line for a terminal: warnings and errors of Triton, and what the
            supervisor does. Called from several threads.
        verbose: Show Triton's whole log.
        supervise: Whether to watch and heal the server.
        check_interval: How often each model is asked, in seconds.
        allow_model_control: Let every client load and unload models.
        allow_shared_memory: Let every client register shared memory for Triton to read: any
            segment of this machine that Triton's user may open.
        startup_timeout: How long the start may take, in seconds.
        drain_timeout: How long requests in flight may take at the end, in seconds.
        extra_arguments: Further arguments of `tritonserver`.
    """

    def __init__(
        self,
        model_repository: str | os.PathLike[str] = "model_repository",
        *,
        host: str = "127.0.0.1",
        http_port: int | None = None,
        grpc_port: int | None = None,
        metrics_port: int | None = None,
        health_port: int | None = None,
        cache_mb: float = 0,
        log_file: str | os.PathLike[str] | None = None,
        show: Callable[[str], None] | None = None,
        verbose: bool = False,
        supervise: bool = True,
        check_interval: float = 1.0,
        allow_model_control: bool = False,
        allow_shared_memory: bool = False,
        startup_timeout: float = 120.0,
        drain_timeout: float = 10.0,
        extra_arguments: Sequence[str] = (),
    ) -> None:
        self._settings = Settings(
            model_repository=Path(model_repository).resolve(),
            host=host,
            cache_mb=cache_mb,
            check_interval=check_interval,
            allow_model_control=allow_model_control,
            allow_shared_memory=allow_shared_memory,
            startup_timeout=startup_timeout,
            drain_timeout=drain_timeout,
            extra_arguments=tuple(extra_arguments),
        )
        self._requested = {
            "http": http_port,
            "grpc": grpc_port,
            "metrics": metrics_port,
            "health": health_port,
        }
        self._log_file = Path(log_file) if log_file is not None else None
        self._show = show
        self._verbose = verbose
        self._supervise = supervise
        self._state = ServerState()
        self._log = Log(None, None, verbose=False)
        self._run: Run | None = None
        self._health: HealthEndpoint | None = None
        self._supervisor: Supervisor | None = None
        self._ports: Ports | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def ports(self) -> Ports:
        """The server's ports."""
        if self._ports is None:
            raise ServerError("the server is not started")
        return self._ports

    @property
    def grpc_url(self) -> str:
        """Where Triton speaks gRPC, as the detection client takes it."""
        return f"grpc://{self._address}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """Where Triton speaks HTTP."""
        return f"http://{self._address}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        """Triton's metrics, for Prometheus."""
        return f"http://{self._address}:{self.ports.metrics}/metrics"

    @property
    def health_url(self) -> str:
        """The supervisor's health endpoint."""
        return f"http://{self._address}:{self.ports.health}/health"

    @property
    def pid(self) -> int:
        """The process of Triton; another one after a restart."""
        process = self._running.process
        if process is None:
            raise ServerError("the server is not started")
        return process.pid

    @property
    def prefix(self) -> str:
        """What the server's processes and shared memory segments are known by."""
        return self._running.leftovers.prefix

    def stub_pids(self) -> dict[int, str]:
        """The processes that run the Python models, each with the name of its model."""
        return self._running.stubs()

    def health(self) -> dict[str, Any]:
        """What the health endpoint answers."""
        return self._state.snapshot()

    def start(self) -> None:
        """Start Triton and wait until every model has answered an inference.

        Raises:
            ServerError: If it cannot be set up or does not start; the message says what to do.
        """
        if self._run is not None:
            raise ServerError("the server is started already")
        self._state = ServerState()
        try:
            self._log = Log(self._show, self._log_file, verbose=self._verbose)
            self._run = Run(self._settings, self._state, self._log)
            self._start_on_free_ports(self._run)
            if self._supervise:
                self._supervisor = Supervisor(self._run, self.ports)
                self._supervisor.start()
            self._run.allow_control(self.ports)
            self._state.server_up()
        except OSError as error:
            self.kill()
            raise ServerError(f"the server cannot be set up: {error}") from error
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the server: requests in flight are answered first. Harmless if it has ended."""
        self._end(in_order=True)

    def kill(self) -> None:
        """End the server at once."""
        self._end(in_order=False)

    def interrupt(self) -> None:
        """Kill Triton without waiting, so that a `stop` in progress ends; for signal handlers."""
        if self._run is not None and self._run.process is not None:
            self._run.process.interrupt()

    @property
    def _address(self) -> str:
        return "127.0.0.1" if self._settings.host == "0.0.0.0" else self._settings.host

    @property
    def _running(self) -> Run:
        if self._run is None:
            raise ServerError("the server is not started")
        return self._run

    def _start_on_free_ports(self, run: Run) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            ports = choose_ports(self._settings.host, self._requested)
            try:
                # Bound before Triton starts: it tells that the server is starting.
                self._health = HealthEndpoint(
                    self._settings.host, ports.health, self._state.snapshot
                )
                run.launch(ports)
            except (PortRaceError, OSError):
                self._close_health()
                if attempt == _ATTEMPTS:
                    raise
                continue
            self._ports = ports
            return

    def _end(self, *, in_order: bool) -> None:
        run, supervisor = self._run, self._supervisor
        if supervisor is not None:
            supervisor.stop()
        self._state.server_down("stopping")
        if run is not None:
            if in_order:
                run.end()
            else:
                run.kill()
        if supervisor is not None:
            supervisor.join()
        self._close_health()
        self._log.close()
        self._run = self._supervisor = self._ports = None

    def _close_health(self) -> None:
        if self._health is not None:
            self._health.close()
            self._health = None
