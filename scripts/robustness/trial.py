"""One fault under load: what is done, watched and told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from robustness.service import Service
from robustness.traffic import RETRYING, Request, Traffic

__all__ = ["Case", "Mark", "Monitor", "Result", "Trial", "judge"]

POLL_S = 0.1
# A killed process takes some time until the kernel has closed its connections.
DYING_S = 0.3


@dataclass(frozen=True, slots=True)
class Mark:
    """A time in which processes died.

    Attributes:
        start: When they were hit.
        end: When they were gone.
    """

    start: float
    end: float

    def had_in_flight(self, request: Request) -> bool:
        """Whether a request was under way in that time."""
        return request.sent <= self.end + DYING_S and request.answered >= self.start


class Monitor:
    """Asks both health endpoints again and again, in a thread of its own.

    Attributes:
        history: For each time of asking, what was not well.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._ending = threading.Event()
        self.history: list[tuple[float, list[str]]] = []
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)

    def start(self) -> None:
        """Start asking."""
        self._thread.start()

    def stop(self) -> None:
        """Stop asking."""
        self._ending.set()
        self._thread.join()

    def well_since(self, after: float) -> float | None:
        """Since when all has been well, counted from a moment; None if it is not."""
        since: float | None = None
        for moment, problems in list(self.history):
            if moment < after:
                continue
            if problems:
                since = None
            elif since is None:
                since = moment
        return since

    def problems(self, after: float) -> Counter[str]:
        """What was not well since a moment."""
        return Counter(
            problem for moment, found in list(self.history) if moment >= after for problem in found
        )

    def _watch(self) -> None:
        while not self._ending.wait(POLL_S):
            asked = time.monotonic()
            self.history.append((asked, self._service.problems()))


class Trial:
    """What a case gets to work with.

    Attributes:
        service: What is hurt.
        traffic: The load on it.
        monitor: What its health endpoints say.
        folder: A temporary folder.
        repository: The model repository that is served: a copy that may be spoiled.
        start: When the case began.
        marks: When processes died.
        checks: What the case has found out, in words, and whether that is as it should be.
    """

    def __init__(
        self,
        service: Service,
        traffic: Traffic,
        monitor: Monitor,
        folder: Path,
        repository: Path,
    ) -> None:
        self.service = service
        self.traffic = traffic
        self.monitor = monitor
        self.folder = folder
        self.repository = repository
        self.start = time.monotonic()
        self.hit: float | None = None
        self.marks: list[Mark] = []
        self.checks: list[tuple[str, bool]] = []

    def check(self, text: str, ok: bool) -> None:
        """Note something that has to be so."""
        self.checks.append((text, ok))

    def now_hit(self) -> None:
        """Note that the fault begins now."""
        self.hit = self.hit or time.monotonic()

    @contextmanager
    def dying(self, pids: Iterable[int], patience_s: float = 15.0) -> Iterator[None]:
        """Note that what is done within ends these processes; waits until they are gone."""
        victims = set(pids)
        self.now_hit()
        began = time.monotonic()
        yield
        deadline = time.monotonic() + patience_s
        while (left := {pid for pid in victims if _lives(pid)}) and time.monotonic() < deadline:
            time.sleep(0.01)
        self.marks.append(Mark(began, time.monotonic()))
        if left:
            self.check(f"processes {sorted(left)} are gone", False)

    def wait_until(self, what: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something is so; whether it came."""
        deadline = time.monotonic() + timeout_s
        while not what():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def answered_since(self, moment: float) -> int:
        """How many requests sent since a moment have been answered well."""
        return sum(
            not one.error and one.sent >= moment
            for one in self.traffic.between(moment, time.monotonic())
        )


@dataclass(frozen=True, slots=True)
class Case:
    """A fault.

    Attributes:
        name: Its name on the command line.
        what: What is hit, in words.
        run: Does it.
        setting: How the service is run for it: a key of `SETTINGS`.
        spares_clients: Whether clients that repeat requests must lose none.
        least_s: How long to look on after it at least, in seconds.
    """

    name: str
    what: str
    run: Callable[[Trial], None]
    setting: str = "plain"
    spares_clients: bool = True
    least_s: float = 1.5


@dataclass(slots=True)
class Result:
    """What came of a case.

    Attributes:
        case: Its name.
        what: What was hit.
        requests: Requests that ended in its time.
        in_flight: Of those that failed: under way when a process died.
        handed: Given to a dead process by Triton before it was replaced.
        refused: Told that they were not begun.
        other: All others, but for those that a client gave up after repeating them: see `retrying`.
        retrying: Lost by clients that repeat requests, those refused by a full queue not counted.
        kinds: All that failed, by sender and kind.
        healthy_s: Until both health endpoints said that all is well; None: they never said else.
        last_failed_s: Until the last request failed; None: none did.
        recovered: Whether all was well again in time.
        left: What dead processes have left.
        checks: What the case itself has found out.
        examples: What some of the errors said.
        failures: Why it did not pass; empty if it did.
    """

    case: str
    what: str
    requests: int = 0
    in_flight: int = 0
    handed: int = 0
    refused: int = 0
    other: int = 0
    retrying: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    healthy_s: float | None = None
    last_failed_s: float | None = None
    recovered: bool = True
    left: list[str] = field(default_factory=list)
    checks: list[tuple[str, bool]] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def judge(
    case: Case,
    requests: Sequence[Request],
    marks: Sequence[Mark],
    hit: float,
    *,
    recovered: bool,
    left: Sequence[str] = (),
    checks: Sequence[tuple[str, bool]] = (),
) -> Result:
    """Say what became of the requests of a case, and whether that may be.

    Args:
        case: The case.
        requests: Those that ended in its time.
        marks: When processes died.
        hit: When the fault began.
        recovered: Whether all was well again in time.
        left: What dead processes have left.
        checks: What the case itself has found out.
    """
    result = Result(case.name, case.what, recovered=recovered)
    result.left, result.checks = list(left), list(checks)
    result.requests = len(requests)
    failed = [request for request in requests if request.error]
    result.kinds = dict(Counter(f"{one.by}: {one.error}" for one in failed))
    result.examples = sorted({f"{one.error}: {one.message}"[:200] for one in failed})[:6]
    for request in failed:
        if any(mark.had_in_flight(request) for mark in marks):
            result.in_flight += 1
        elif request.unhealthy and request.sent >= hit:
            result.handed += 1
        elif request.refused and request.sent >= hit:
            result.refused += 1
        elif request.by != RETRYING or request.sent < hit:
            result.other += 1
    result.retrying = sum(one.by == RETRYING and not one.refused for one in failed)
    if failed:
        result.last_failed_s = max(one.answered for one in failed) - hit
    if not recovered:
        result.failures.append("all was not well again in time")
    if result.other:
        result.failures.append(f"{result.other} requests lost that may not be")
    if result.retrying and case.spares_clients:
        result.failures.append(f"{result.retrying} lost by clients that repeat requests")
    if not requests:
        result.failures.append("there was no load")
    result.failures += [f"left behind: {what}" for what in left]
    result.failures += [f"not so: {text}" for text, ok in checks if not ok]
    return result


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
