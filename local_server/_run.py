"""Starts Triton on the server's ports, starts it again, and ends it."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from local_server._cleanup import Leftovers, python_environments
from local_server._control import Control, write_control
from local_server._errors import ServerError
from local_server._generations import unused_models
from local_server._http import Connection, TritonError
from local_server._log import Log
from local_server._ports import Ports
from local_server._probe import Probe
from local_server._process import TritonProcess, server_arguments
from local_server._state import ServerState
from local_server._triton import find_triton, link_backends
from local_server._watch import stubs


@dataclass(frozen=True)
class Settings:
    """How a server is run; `TritonServer` describes each."""

    model_repository: Path
    host: str
    cache_mb: float
    check_interval: float
    allow_model_control: bool
    allow_shared_memory: bool
    startup_timeout: float
    drain_timeout: float
    extra_arguments: Sequence[str]


class Run:
    """A server from its start to its end, over any number of runs of Triton.

    Attributes:
        settings: How it is run.
        state: Its health.
        log: Takes Triton's output and our lines.
        leftovers: What must go in the end.
        process: The Triton that runs now, or ran last.
        connection: To it.
        probes: One for each of its models, by the model's name.
    """

    def __init__(self, settings: Settings, state: ServerState, log: Log) -> None:
        self.settings = settings
        self.state = state
        self.log = log
        self._triton = find_triton()
        if not settings.model_repository.is_dir():
            raise ServerError(f"there is no model repository {settings.model_repository}")
        self._secret = secrets.token_hex(16)
        self.process: TritonProcess | None = None
        self.probes: dict[str, Probe] = {}
        self._seen: object = None  # what the probes were made from
        self._lock = threading.Lock()  # a restart must not start what `end` has not seen
        self._ended = False
        self._starts = 0
        self.leftovers = Leftovers()
        self._backends = self.leftovers.folder / "backends"
        self._backends.mkdir()
        link_backends(self._triton, self._backends)

    def launch(self, ports: Ports) -> None:
        """Start Triton and wait until every model has answered an inference.

        Raises:
            PortRaceError: If a port was taken in the meantime.
            ServerError: If it does not start, or a model does not answer.
        """
        settings = self.settings
        deadline = time.monotonic() + settings.startup_timeout
        host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host
        self.connection = Connection(host, ports.http, self._secret)
        with self._lock:
            if self._ended:
                raise ServerError("the server is being stopped")
            if self.process is not None:
                self.process.kill()  # also what its stubs left
            self.log.forget()
            self._starts += 1
            prefix = f"{self.leftovers.prefix}-{self._starts}-"
            arguments = server_arguments(
                model_repository=settings.model_repository,
                backends=self._backends,
                caches=self._triton.caches,
                host=settings.host,
                ports=ports,
                prefix=prefix,
                cache_mb=settings.cache_mb,
                secret=self._secret,
                open_to_clients={
                    "model-repository": settings.allow_model_control,
                    "shared-memory": settings.allow_shared_memory,
                },
                drain_timeout=settings.drain_timeout,
                models=self._models_to_load(),
            )
            before, since = python_environments(), time.time()
            self.log.hold()
            self.process = TritonProcess(
                self._triton, [*arguments, *settings.extra_arguments], prefix, self.log
            )
        answers = False
        try:
            self.process.wait_until_ready(self.connection, settings.startup_timeout)
            self._first_answers(deadline)
            answers = True
        except (TritonError, OSError) as error:
            raise ServerError(f"Triton does not answer: {error}") from error
        finally:
            self.leftovers.note_folders(before, since)
            self.log.release(show=answers)

    def stubs(self) -> dict[int, str]:
        """The processes of the Python models, each with the name of its model."""
        return stubs(f"{self.leftovers.prefix}-{self._starts}-")

    def end(self) -> None:
        """End Triton in order and clean up."""
        with self._lock:
            self._ended = True
        if self.process is not None:
            deadline = time.monotonic() + self.settings.drain_timeout
            with contextlib.suppress(OSError, TritonError):  # it may have died, or hang
                self._unload_ensembles(self.process, deadline)
            self.process.stop(max(1.0, deadline - time.monotonic()))
        self.leftovers.clean()

    def kill(self) -> None:
        """End Triton at once and clean up."""
        with self._lock:
            self._ended = True
        if self.process is not None:
            self.process.kill()
        self.leftovers.clean()

    def allow_control(self, ports: Ports) -> None:
        """Let the user's own programs load and unload models; `find_control` tells them how."""
        control = Control(
            launcher=os.getpid(),
            host=self.settings.host,
            http_port=ports.http,
            grpc_port=ports.grpc,
            model_repository=str(self.settings.model_repository),
            header=Connection.SECRET_HEADER,
            secret=None if self.settings.allow_model_control else self._secret,
        )
        write_control(self.leftovers.folder, control)

    def refresh_probes(self) -> bool:
        """Learn which models there are to watch: those that are loaded and part of what is served.

        Returns:
            Whether anything has changed since last time.

        Raises:
            TritonError: If Triton answers with an error.
            OSError: If it does not answer.
        """
        unused = unused_models(self.settings.model_repository)
        seen = (self.connection.index(), unused)
        if seen == self._seen:
            return False
        states = {n: s for n, s in self.connection.models().items() if n not in unused}
        probes = {
            # One that is not ready now may be about to come back.
            name: probe
            for name, probe in self.probes.items()
            if states.get(name, "UNLOADED") not in ("UNLOADED", "UNLOADING")
        }
        for name, state in states.items():
            if state == "READY":
                probes[name] = Probe(self.connection.config(name))
        self.probes, self._seen = probes, seen
        return True

    def _unload_ensembles(self, process: TritonProcess, deadline: float) -> None:
        """Let ensembles answer what they have begun, and begin no more.

        A Triton that is told to end answers the requests of single models, and refuses the later
        steps of an ensemble's.
        """
        ensembles = {
            name for name, probe in self.probes.items() if "ensemble_scheduling" in probe.config
        }
        for name in ensembles:
            self.connection.unload(name, timeout=2)
        while ensembles and process.alive and time.monotonic() < deadline:
            states = self.connection.models()
            ensembles = {n for n in ensembles if states.get(n, "UNLOADED") != "UNLOADED"}
            time.sleep(0.02)

    def _models_to_load(self) -> list[str] | None:
        """The models to start with; None for all of the repository."""
        repository = self.settings.model_repository
        unused = unused_models(repository)
        if not unused:
            return None
        folders = {path.name for path in repository.iterdir() if path.is_dir()}
        return sorted(folders - unused)

    def _first_answers(self, deadline: float) -> None:
        self.probes, self._seen = {}, None
        self.refresh_probes()
        if not self.probes:
            raise ServerError(f"no models in {self.settings.model_repository}")
        for model, probe in self.probes.items():
            started = time.monotonic()
            try:
                probe.ask(self.connection, timeout=max(1.0, deadline - started))
            except (TritonError, OSError) as error:
                # A full queue is one of a model that works: clients were waiting for the start.
                if not (isinstance(error, TritonError) and (error.refused or error.busy)):
                    raise ServerError(f"model {model!r} does not answer: {error}") from error
            self.state.answered(model, time.monotonic() - started)
