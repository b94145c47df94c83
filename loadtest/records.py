"""What became of each request, in this process or in the workers."""

from __future__ import annotations

import os
import time
from typing import Any

from detection_client import QueueFullError

__all__ = ["OK", "REFUSED", "Recorder", "outcome_of"]

OK, REFUSED = "ok", "refused"
# end (seconds since the epoch), latency in s, protocol, name, outcome, images detected on, and how
# many seconds after its arrival the request was sent
Row = tuple[float, float, str, str, str, int, float]


def outcome_of(error: BaseException | None) -> str:
    """``ok``, ``refused`` where the server had more work than it takes, or the error's kind."""
    if error is None:
        return OK
    return REFUSED if isinstance(error, QueueFullError) else type(error).__name__


class Recorder:
    """Collects requests, empty calls and the CPU time of the processes that generate the load."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.outside: list[tuple[float, float]] = []  # end, seconds of an empty call
        self.cpu: list[tuple[float, str, float]] = []  # when, process, CPU seconds so far

    def clear(self) -> None:
        """Forget everything, before a run."""
        self.rows, self.outside, self.cpu = [], [], []

    def on_request(
        self,
        request_type: str,
        name: str,
        response_time: float,
        exception: BaseException | None = None,
        context: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Take a request as Locust's event reports it."""
        images = int((context or {}).get("images", 1)) if exception is None else 0
        latency = response_time / 1000
        self.rows.append(
            (
                *(time.time(), latency, request_type, name, outcome_of(exception), images),
                float((context or {}).get("late_s", 0.0)),
            )
        )

    def sample_cpu(self, process: str) -> None:
        """Note the CPU time that this process has used."""
        used = os.times()  # of this process: Locust forks its workers after this object was made
        self.cpu.append((time.time(), process, used.user + used.system))

    def take(self) -> dict[str, Any]:
        """Hand out what has been collected, for the master."""
        rows, outside, cpu = self.rows, self.outside, self.cpu
        self.clear()
        return {"now": time.time(), "rows": rows, "outside": outside, "cpu": cpu}

    def add(self, report: dict[str, Any]) -> None:
        """Add what a worker has collected, with its times turned into those of this clock."""
        ahead = time.time() - report["now"]
        self.rows += [(row[0] + ahead, *row[1:]) for row in report["rows"]]
        self.outside += [(end + ahead, took) for end, took in report["outside"]]
        self.cpu += [(when + ahead, name, used) for when, name, used in report["cpu"]]
