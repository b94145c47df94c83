"""Finds out whether a model answers, by a real inference every second or so.

A model that has just answered somebody else need not be asked: under load the health checks cost
next to nothing, and an ensemble's inference is one of each of its parts.
"""

from __future__ import annotations

import threading
import time

from local_server._healer import Healer
from local_server._http import Statistics, TritonError
from local_server._probe import Probe
from local_server._run import Run
from local_server._watch import cpu_seconds

_ANSWER_TIMEOUT = 4.0
_BUSY_LIMIT = 60.0  # seconds that a model may compute without answering anybody
_BUSY = 0.25  # of a core, by which a model's processes count as computing
_FAILURES = 2  # so many failed inferences in a row are taken seriously
_ENSEMBLE_FAILURES = 5  # its parts are asked by themselves, and healed first


class Asker:
    """Asks one model again and again, in a thread of its own.

    Args:
        run: The server.
        healer: Told when the model has to be brought back.
        model: The model's name.
        stopping: Set when it is to end.
    """

    def __init__(self, run: Run, healer: Healer, model: str, stopping: threading.Event) -> None:
        self._run = run
        self._healer = healer
        self._model = model
        self._stopping = stopping
        self._seen: Statistics | None = None
        self._silent_since: float | None = None
        self.thread = threading.Thread(
            target=run.state.guard, args=(self._work,), name=f"ask-{model}", daemon=True
        )

    def _work(self) -> None:
        failures = 0
        while not self._stopping.wait(self._run.settings.check_interval):
            probe = self._run.probes.get(self._model)
            if probe is None:
                self._run.state.forget(self._model)
                return
            if self._healer.is_pending(self._model):
                continue
            problem, hangs = self._ask(probe)
            if self._stopping.is_set() or self._healer.is_pending(self._model):
                continue
            if problem is None:
                failures = 0
                continue
            failures += 1
            self._run.state.failing(self._model, problem)
            if hangs or failures >= (_ENSEMBLE_FAILURES if probe.parts else _FAILURES):
                failures = 0
                self._healer.want(self._model, problem, hangs=hangs)

    def _ask(self, probe: Probe) -> tuple[str | None, bool]:
        """Ask for an inference, if there was none; returns what is wrong, and whether it hangs."""
        connection = self._run.connection
        try:
            now = connection.statistics(self._model)
            latency_s = self._latency_s(now)
            if latency_s is None:
                started, cpu_before = time.monotonic(), self._cpu_seconds()
                try:
                    probe.ask(connection, _ANSWER_TIMEOUT)
                except TimeoutError:
                    if self._is_busy(now, started, self._cpu_seconds() - cpu_before):
                        return None, False
                    return f"no answer within {_ANSWER_TIMEOUT:.0f} s", not probe.parts
                except TritonError as error:
                    if error.busy:
                        return None, False  # a full queue; if it hangs, waiting requests will tell
                    if not error.refused:
                        raise
                latency_s = time.monotonic() - started
                now = now._replace(answered=now.answered + 1)  # our own does not count next time
            self._seen, self._silent_since = now, None
            self._healer.answered(self._model, latency_s)
            return None, False
        except TritonError as error:
            if self._healer.is_unloaded(self._model):
                return None, False
            return str(error), False
        except OSError as error:
            return f"Triton does not answer: {error}", False

    def _cpu_seconds(self) -> float:
        instances = self._healer.instances().items()
        return cpu_seconds(pid for pid, model in instances if model == self._model)

    def _is_busy(self, before: Statistics, since: float, cpu_s: float) -> bool:
        """Whether a model that did not answer us has a long queue or long requests, no more."""
        after = self._run.connection.statistics(self._model)
        if after.answered + after.failed > before.answered + before.failed:
            self._silent_since = None
            return True
        self._silent_since = self._silent_since or since
        now = time.monotonic()
        return cpu_s > _BUSY * (now - since) and now - self._silent_since < _BUSY_LIMIT

    def _latency_s(self, now: Statistics) -> float | None:
        """The mean latency of what others asked since last time; None if there was nothing.

        Nor if any of it failed: that may be the requests' fault or the model's.
        """
        seen = self._seen
        if seen is None or now.answered <= seen.answered or now.failed != seen.failed:
            return None
        return (now.duration_ns - seen.duration_ns) / (now.answered - seen.answered) / 1e9
