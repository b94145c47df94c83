"""What is known of the server's health: written by the supervisor, read by the endpoint."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


@dataclass
class ModelState:
    """What is known of one model.

    Attributes:
        ok: Whether it answers, with all of its instances.
        since: When `ok` last changed, in seconds since the epoch.
        latency_ms: How long its last answer took.
        answered_at: When it last answered, in seconds since the epoch.
        reloads: How often it has been reloaded.
        failures: How often `ok` has become false.
        problem: What is wrong with it.
        action: What is being done about that.
    """

    ok: bool = False
    since: float = field(default_factory=time.time)
    latency_ms: float | None = None
    answered_at: float | None = None
    reloads: int = 0
    failures: int = 0
    problem: str | None = "starting"
    action: str | None = None


class ServerState:
    """The health of the server and of each of its models; for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: dict[str, ModelState] = {}
        self._problem: str | None = "starting"
        self._restarts = 0
        self._supervised = True

    def guard(self, work: Callable[[], None]) -> None:
        """Do a supervisor thread's work; if it fails, nobody watches, and the health says so."""
        ended_well = False
        try:
            work()
            ended_well = True
        finally:
            if not ended_well:
                self._supervised = False
                self.server_down("the supervisor has failed; start the server again")

    def server_down(self, problem: str) -> None:
        """Triton does not run."""
        with self._lock:
            self._problem = problem
            for state in self._models.values():
                _change(state, ok=False, problem=problem, action="restarting Triton")

    def server_up(self, *, restarted: bool = False) -> None:
        """Triton runs, and every model has answered."""
        with self._lock:
            self._problem = None
            self._restarts += restarted

    def answered(self, model: str, latency_s: float) -> None:
        """A model answered, and nothing else is known to be wrong with it."""
        with self._lock:
            state = self._models.setdefault(model, ModelState())
            state.latency_ms = round(latency_s * 1000, 3)
            state.answered_at = time.time()
            _change(state, ok=True, problem=None, action=None)

    def failing(self, model: str, problem: str, action: str | None = None) -> None:
        """A model does not answer, or has lost an instance."""
        with self._lock:
            state = self._models.setdefault(model, ModelState())
            _change(state, ok=False, problem=problem, action=action or state.action)

    def reloaded(self, model: str) -> None:
        """A model was reloaded."""
        with self._lock:
            self._models.setdefault(model, ModelState()).reloads += 1

    def forget(self, model: str) -> None:
        """A model is there no more."""
        with self._lock:
            self._models.pop(model, None)

    def snapshot(self) -> dict[str, Any]:
        """Everything, as the health endpoint answers it."""
        with self._lock:
            ok = self._problem is None and all(state.ok for state in self._models.values())
            return {
                "status": "ok" if ok else "failing",
                "problem": self._problem,
                "restarts": self._restarts,
                "supervised": self._supervised,
                "models": {name: _as_json(state) for name, state in sorted(self._models.items())},
            }


def _change(state: ModelState, *, ok: bool, problem: str | None, action: str | None) -> None:
    if state.ok != ok:
        state.since = time.time()
        state.failures += not ok
    state.ok, state.problem, state.action = ok, problem, action


def _as_json(state: ModelState) -> dict[str, Any]:
    def moment(seconds: float | None) -> str | None:
        if seconds is None:
            return None
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")

    answer: dict[str, Any] = {
        "status": "ok" if state.ok else "failing",
        "since": moment(state.since),
        "last_answer": moment(state.answered_at),
        "latency_ms": state.latency_ms,
        "reloads": state.reloads,
        "failures": state.failures,
    }
    if not state.ok:
        answer |= {"problem": state.problem, "action": state.action}
    return answer
