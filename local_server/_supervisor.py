"""Notices that a model or Triton itself has died or hangs.

Two ways of noticing: every model is asked for a real inference every second or so, and the
processes that run the Python models are watched, since of several instances a dead one fails only
its share of the requests. Triton does not start such a process again by itself, and goes on
calling the model ready.
"""

from __future__ import annotations

import contextlib
import threading

from local_server._asker import Asker
from local_server._healer import TRITON, Healer
from local_server._http import TritonError
from local_server._ports import Ports
from local_server._run import Run
from local_server._watch import Watch

_TICK = 0.25  # seconds between looks at the processes; their end is noticed at once
_REFRESH = 1.0  # seconds between looks at which models there are


class Supervisor:
    """Watches one server, from `start` to `stop`.

    Args:
        run: The server; it has been launched.
        ports: Its ports, for launching it again.
    """

    def __init__(self, run: Run, ports: Ports) -> None:
        self._run = run
        self._stopping = threading.Event()
        self._healer = Healer(run, ports, self._stopping)
        self._watcher = threading.Thread(
            target=run.state.guard, args=(self._watch,), name="watch", daemon=True
        )
        # By itself: a Triton that is stopped does not answer, and the watcher is to notice that.
        self._learner = threading.Thread(
            target=run.state.guard, args=(self._learn,), name="learn", daemon=True
        )
        self._askers: dict[str, Asker] = {}

    def start(self) -> None:
        """Start watching."""
        self._healer.thread.start()
        self._watcher.start()
        self._learner.start()

    def stop(self) -> None:
        """Heal nothing from now on."""
        self._stopping.set()
        self._healer.stop()

    def join(self) -> None:
        """Wait until the watching has ended; Triton has ended before."""
        askers = [asker.thread for asker in self._askers.values()]
        for thread in (self._watcher, self._learner, self._healer.thread, *askers):
            if thread.is_alive():
                thread.join(5)

    def _watch(self) -> None:
        """Watch Triton's process and those of its models, and have every model asked."""
        watch = Watch()
        while not self._stopping.is_set():
            process, instances = self._run.process, self._healer.instances()
            assert process is not None
            ended = watch.watch({process.pid, *instances})
            more, stopped = watch.wait(_TICK)
            ended |= more
            if self._stopping.is_set():
                break
            if process is not self._run.process:
                continue  # another one has been started in the meantime
            if process.pid in ended | stopped:
                what = "is stopped" if process.pid in stopped else "has died"
                self._healer.want(TRITON, f"Triton's process {process.pid} {what}")
                self._stopping.wait(_TICK)
                continue
            for pid in (ended | stopped) & instances.keys():
                what = "has died" if pid in ended else "is stopped"
                self._healer.lost(pid, f"the process of an instance, {pid}, {what}")
            self._healer.end_retired()
            self._have_all_asked()
        watch.close()

    def _learn(self) -> None:
        """Learn which models somebody has loaded or unloaded."""
        while not self._stopping.wait(_REFRESH):
            if not self._healer.is_pending(TRITON):
                with contextlib.suppress(OSError, TritonError):
                    if self._run.refresh_probes():
                        self._healer.models_changed()

    def _have_all_asked(self) -> None:
        for model in self._run.probes:
            asker = self._askers.get(model)
            if asker is None or not asker.thread.is_alive():
                self._askers[model] = Asker(self._run, self._healer, model, self._stopping)
                self._askers[model].thread.start()
