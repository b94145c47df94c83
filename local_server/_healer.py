"""Brings back a model that has lost an instance or does not answer, or Triton as a whole.

A model is brought back by loading it with a configuration that differs in nothing that matters:
Triton then starts the new instances before it retires the old ones, so that requests go on being
answered. Where that fails again and again, or Triton has died, Triton is started again. A model
that cannot be loaded, but has processes left that answer, is left with these and tried again from
time to time: its file may be broken, and then nothing would come of starting anew.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import signal
import threading
import time
from collections import defaultdict, deque

from local_server._errors import ServerError
from local_server._http import TritonError
from local_server._ports import Ports
from local_server._probe import Probe
from local_server._reduced import Reduced
from local_server._reload import load_anew
from local_server._run import Run
from local_server._watch import is_stopped

TRITON = ""  # in place of a model's name: the whole server

_RELOAD_ATTEMPTS = 3
_RETIREMENT = 10.0  # seconds that a replaced instance has for its last requests
_UNLOADING = 60.0  # and one of a model that somebody unloads, perhaps with a long queue
_FIRST_DELAY, _LAST_DELAY = 0.5, 30.0  # seconds between starts of a Triton that does not last
_LASTING = 30.0  # seconds after which a Triton counts as having lasted
_OFTEN = 5  # so many reloads of a model within a minute are done at once
_OFTEN_DELAY = 5.0  # and each further one after so many seconds
_LOOK = 1.0  # seconds between looks at models that serve with fewer processes


class Healer:
    """Does the healing of one server, one thing at a time, in a thread of its own.

    Args:
        run: The server; it has been launched.
        ports: Its ports, for launching it again.
        stopping: Set when nothing is to be healed any more.
    """

    def __init__(self, run: Run, ports: Ports, stopping: threading.Event) -> None:
        self._run = run
        self._ports = ports
        self._stopping = stopping
        self._jobs: queue.SimpleQueue[tuple[str, str, bool] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pending: set[str] = set()  # waiting to be healed, or being healed
        self._instances: dict[int, str] = {}  # process -> model: those that must not end
        self._retired: dict[int, float] = {}  # replaced process -> when it must have ended
        self._reloads: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_OFTEN))
        self._reduced = Reduced(run)
        self._serial = itertools.count(1)
        self._delay = _FIRST_DELAY
        self._launched = time.monotonic()
        self._count_instances()
        self.thread = threading.Thread(
            target=run.state.guard, args=(self._work,), name="heal", daemon=True
        )

    def stop(self) -> None:
        """Take no more work; `stopping` is set."""
        self._jobs.put(None)

    def is_pending(self, model: str) -> bool:
        """Whether a model is being brought back, by itself or with the whole server."""
        with self._lock:
            return model in self._pending or TRITON in self._pending

    def instances(self) -> dict[int, str]:
        """The processes that must not end, each with its model."""
        with self._lock:
            return dict(self._instances)

    def want(self, model: str, problem: str, *, hangs: bool = False) -> None:
        """Ask for a model, or `TRITON`, to be brought back; it may be asked for already.

        Args:
            model: The model.
            problem: What is wrong with it.
            hangs: Whether its processes live but do not answer, and must be killed.
        """
        with self._lock:
            if model in self._pending or TRITON in self._pending or self._stopping.is_set():
                return
            self._pending.add(model)
            if model == TRITON:
                self._run.state.server_down(problem)
            else:
                self._run.state.failing(model, problem, "reloading it")
        self._jobs.put((model, problem, hangs))

    def answered(self, model: str, latency_s: float) -> None:
        """Note that a model answered; that it has lost an instance weighs more."""
        with self._lock:
            if not {model, TRITON} & self._pending:
                self._run.state.answered(model, latency_s)

    def lost(self, pid: int, problem: str) -> None:
        """An instance's process has ended or is useless."""
        with self._lock:
            model = self._instances.pop(pid, None)
        if model is None:
            return  # replaced in the meantime
        if self.is_unloaded(model) or self._is_replaced(model, pid):
            return
        if model in self._run.probes:
            self.want(model, problem)

    def is_unloaded(self, model: str) -> bool:
        """Whether somebody has unloaded a model; then it is none of our business."""
        with contextlib.suppress(OSError, TritonError):
            if self._run.connection.models().get(model) in (None, "UNLOADED", "UNLOADING"):
                self._run.state.forget(model)
                return True
        return False

    def models_changed(self) -> None:
        """Watch the processes of models that somebody has loaded, and no longer the others'.

        Those that an unloaded model leaves behind, because they hang, are killed in the end.
        """
        run, living, deadline = self._run, self._run.stubs(), time.monotonic() + _UNLOADING
        with contextlib.suppress(OSError, TritonError):
            states = run.connection.models()
            with self._lock:
                known = set(self._instances.values()) | self._pending
                for pid, model in living.items():
                    if states.get(model) in (None, "UNLOADED", "UNLOADING"):
                        self._retired.setdefault(pid, deadline)
                    elif model in run.probes and model not in known and pid not in self._retired:
                        self._instances[pid] = model

    def end_retired(self) -> None:
        """Kill replaced instances that have not ended by themselves.

        Triton does not unload a model that died with a request in flight, so the processes of its
        other instances would stay.
        """
        now = time.monotonic()
        with self._lock:
            due = [pid for pid, deadline in self._retired.items() if deadline <= now]
            for pid in due:
                del self._retired[pid]
        for pid in self._run.stubs().keys() & set(due) if due else ():
            _kill(pid)

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                job = self._jobs.get(timeout=_LOOK if self._reduced else None)
            except queue.Empty:
                self._try_reduced()
                continue
            if job is None:
                return
            model, problem, hangs = job
            if model == TRITON:
                self._restart(problem)
            elif not self.is_pending(TRITON):
                self._heal(model, problem, hangs)

    def _heal(self, model: str, problem: str, hangs: bool) -> None:
        run, began = self._run, time.monotonic()
        probe = run.probes.get(model)
        if probe is None:  # unloaded by a client
            self._count_instances(healed=model)
            return
        run.log.note(f"{model}: {problem}; reloading it")
        reloads = self._reloads[model]
        if len(reloads) == _OFTEN and began - reloads[0] < 60:
            run.state.failing(model, problem, f"waiting {_OFTEN_DELAY:.0f} s, then reloading it")
            self._stopping.wait(_OFTEN_DELAY)
        reloads.append(began)
        for attempt in range(1, _RELOAD_ATTEMPTS + 1):
            if self._stopping.is_set() or self.is_pending(TRITON):
                return
            try:
                old = self._replace(probe, hangs, gently=attempt < _RELOAD_ATTEMPTS)
            except (TritonError, OSError) as error:
                run.log.note(f"{model}: reloading it failed: {error}")
                run.state.failing(model, str(error), "reloading it again")
                # A load that hangs holds up every further one of that model.
                hung = isinstance(error, TimeoutError)
                last_but_one = attempt == _RELOAD_ATTEMPTS - 1
                if (hung or last_but_one) and self._reduced.keep(probe, str(error)):
                    return
                if hung:
                    break
                self._stopping.wait(attempt)
                continue
            self._healed(model, old, began)
            return
        self._give_up(model)

    def _healed(self, model: str, old: set[int], began: float) -> None:
        self._run.state.reloaded(model)
        self._count_instances(healed=model, retired=old)
        self._run.log.note(f"{model}: answers again, {time.monotonic() - began:.1f} s later")

    def _give_up(self, model: str) -> None:
        with self._lock:
            self._pending.discard(model)
        self.want(TRITON, f"{model} cannot be reloaded")

    def _try_reduced(self) -> None:
        """Load the models that serve with fewer processes again, where that is due."""
        for model, pause in self._reduced.take_due():
            began, probe = time.monotonic(), self._run.probes.get(model)
            if probe is None:  # unloaded by a client
                self._count_instances(healed=model)
                continue
            try:
                self._healed(model, self._replace(probe, hangs=False, gently=True), began)
            except (TritonError, OSError) as error:
                self._run.log.note(f"{model}: reloading it failed: {error}")
                if not self._reduced.keep(probe, str(error), pause):
                    self._give_up(model)

    def _replace(self, probe: Probe, hangs: bool, gently: bool) -> set[int]:
        """Replace a model's instances; returns the processes of the old ones."""
        run, model = self._run, probe.model
        old = {pid for pid, name in run.stubs().items() if name == model}
        with self._lock:
            for pid in old:
                self._instances.pop(pid, None)
        for pid in old:
            if hangs or is_stopped(pid):
                _kill(pid)  # Triton then gives up on the requests it has
        load_anew(run, probe, next(self._serial) if gently else None)
        return old

    def _restart(self, problem: str) -> None:
        run = self._run
        self._reduced.clear()
        while not self._stopping.is_set():
            if time.monotonic() - self._launched > _LASTING:
                self._delay = _FIRST_DELAY
            else:
                run.log.note(f"{problem}; starting it again in {self._delay:.1f} s")
                self._stopping.wait(self._delay)
                self._delay = min(2 * self._delay, _LAST_DELAY)
            run.log.note(f"{problem}; starting it again")
            run.state.server_down(problem)
            began = self._launched = time.monotonic()
            try:
                run.launch(self._ports)
            except (ServerError, OSError) as error:
                problem = str(error)
                continue
            self._count_instances(healed=TRITON)
            run.state.server_up(restarted=True)
            run.log.note(f"Triton answers again, {time.monotonic() - began:.1f} s later")
            return

    def _count_instances(self, healed: str | None = None, retired: set[int] | None = None) -> None:
        """Take the processes that live now, of all or of one model, for those that must not end."""
        with self._lock:
            deadline = time.monotonic() + _RETIREMENT
            self._retired |= dict.fromkeys(retired or (), deadline)
            living = self._run.stubs()
            fresh = {p: name for p, name in living.items() if p not in self._retired}
            if healed in (None, TRITON):
                self._instances = fresh
            else:  # a process of another model may have died, and nobody have noticed yet
                others = {p: name for p, name in self._instances.items() if name != healed}
                mine = {p: name for p, name in fresh.items() if name == healed}
                self._instances = others | mine
            if healed == TRITON:
                self._pending.clear()
            elif healed is not None:
                self._pending.discard(healed)

    def _is_replaced(self, model: str, lost: int) -> bool:
        """Whether somebody has loaded a model anew, so that its former processes end."""
        living = self._run.stubs()
        with self._lock:
            if model in self._pending:
                return False
            new = {
                pid
                for pid, name in living.items()
                if name == model and pid not in {lost, *self._instances, *self._retired}
            }
            if new:
                others = {p: name for p, name in self._instances.items() if name != model}
                self._instances = others | dict.fromkeys(new, model)
            return bool(new)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
