"""The scenario as a shape of Locust's, which says at each moment how many users there are."""
# mypy: disable-error-code="misc"

from __future__ import annotations

import time
from collections.abc import Callable

from locust import LoadTestShape
from locust.runners import WORKER_REPORT_INTERVAL, LocalRunner

from loadtest.options import LoadOptions
from loadtest.plan import Phase, make_plan

__all__ = ["PhaseShape"]

_SPAWN_RATE = 100  # users a second: as fast as Locust likes it
_SLACK_S = 1.0


class PhaseShape(LoadTestShape):
    """Walks through the phases of the chosen scenario, then waits until no request is in flight.

    A user of closed arrival asks as fast as answers come; one of open arrival is a source of one
    request a second at random moments, so the level is the number of users either way.
    """

    abstract = True

    on_phase: Callable[[Phase | None], None] | None = None  # None: the load has ended

    def __init__(self) -> None:
        super().__init__()
        self._plan: list[Phase] = []
        self._index = -1
        self._end = 0.0
        self._drained = 0.0

    def restart(self) -> None:
        """Be ready for another run."""
        self._index = -1

    def tick(self) -> tuple[int, float] | None:
        """How many users there are now; None when all is over."""
        now = time.monotonic()
        if self._index < 0:
            self._plan = make_plan(
                LoadOptions.from_namespace(self.runner.environment.parsed_options)
            )
            self._enter(0, now)
        while self._index < len(self._plan) and now >= self._end - 0.05:
            self._enter(self._index + 1, now)
        if self._index < len(self._plan):
            return self._plan[self._index].level, _SPAWN_RATE
        if self.runner.user_count == 0 and now >= self._drained:
            return None
        return 0, _SPAWN_RATE

    def _enter(self, index: int, now: float) -> None:
        self._index = index
        phase = self._plan[index] if index < len(self._plan) else None
        if phase is not None:
            self._end = now + phase.seconds
        else:  # what workers have measured comes with their next report
            is_local = isinstance(self.runner, LocalRunner)
            self._drained = now + (0 if is_local else WORKER_REPORT_INTERVAL + _SLACK_S)
        if self.on_phase is not None:
            self.on_phase(phase)
