"""Which of several servers a request goes to, and what becomes of those that fail.

Nothing here sends anything: `_balancing` does, blocking and with asyncio, by these rules.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from detection_client._errors import (
    DeadlineExceededError,
    DetectionClientError,
    QueueFullError,
    ServerUnavailableError,
)
from detection_client._status import no_answer

__all__ = ["Attempt", "Call", "Servers"]

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 4.0
# Requests that a queue has refused may go to a second server, but not so many of them that servers
# that are all full get a second load: one for every ten requests, and ten at once.
RETRIES_A_REQUEST = 0.1
MOST_RETRIES_SAVED = 10.0


@dataclass(eq=False, slots=True)
class _Server:
    """What is known of one server.

    Attributes:
        index: Its place in the list.
        in_flight: Requests under way.
        last_turn: Number of the last request that went to it.
        failures: How often in a row it has been set aside.
        aside_since: When it was set aside last.
        aside_until: When it is tried again.
        answered: When it last answered a request, be it with an error of its own.
        probing: Whether a request tries it now, after its pause.
    """

    index: int
    in_flight: int = 0
    last_turn: int = 0
    failures: int = 0
    aside_since: float = -math.inf
    aside_until: float = -math.inf
    answered: float = -math.inf
    probing: bool = False


class Servers:
    """The servers of one client, for any number of threads.

    A request goes to the server with the fewest requests of this client under way; among equals it
    is the one whose last turn is longest ago. A server that fails is set aside for a pause that
    doubles with every failure. Then a single request tries it, and the others follow when it has
    answered. When all are set aside, the one whose pause ends first is tried.

    Args:
        urls: Their addresses, for messages.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = tuple(urls)
        self._servers = [_Server(index) for index in range(len(urls))]
        self._turns = 0
        self._saved_retries = MOST_RETRIES_SAVED
        self._lock = threading.Lock()

    def call(self, timeout: float) -> Call:
        """A request that one of the servers is to answer within this many seconds."""
        with self._lock:
            self._saved_retries = min(MOST_RETRIES_SAVED, self._saved_retries + RETRIES_A_REQUEST)
        return Call(self, timeout)

    def take(self, tried: Sequence[int]) -> tuple[_Server, bool]:
        """Choose a server for one attempt.

        Args:
            tried: The servers that this call has asked already; not all of them.

        Returns:
            The server, and whether it is one that has failed.
        """
        now = time.monotonic()
        with self._lock:
            left = [server for server in self._servers if server.index not in tried]
            due = [s for s in left if s.failures and not s.probing and s.aside_until <= now]
            well = [server for server in left if not server.failures]
            if due:
                server = min(due, key=lambda one: one.aside_until)
            elif well:
                server = min(well, key=lambda one: (one.in_flight, one.last_turn))
            else:
                server = min(left, key=lambda one: one.aside_until)
            self._turns += 1
            server.last_turn = self._turns
            server.in_flight += 1
            doubtful = server.failures > 0
            server.probing = server.probing or doubtful
            return server, doubtful

    def give(self, server: _Server, started: float, outcome: BaseException | None) -> None:
        """Learn how an attempt has ended."""
        now = time.monotonic()
        with self._lock:
            server.in_flight -= 1
            if started < server.aside_since:  # it tells what is known already
                return
            server.probing = False
            if isinstance(outcome, DeadlineExceededError):
                # A server that answers others meanwhile has too much to do; setting it aside
                # would heap its load on the rest.
                failed = server.answered < started
            elif outcome is None or isinstance(outcome, DetectionClientError):
                failed = isinstance(outcome, ServerUnavailableError)
                if not failed:
                    server.answered, server.failures = now, 0
            else:  # the caller was interrupted, or gave up waiting
                return
            if failed:
                pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**server.failures)
                server.failures = min(server.failures + 1, 10)
                server.aside_since = now
                server.aside_until = now + pause * random.uniform(0.75, 1.0)

    def spend_retry(self) -> bool:
        """Whether a request that was refused for a full queue may go to another server."""
        with self._lock:
            if self._saved_retries < 1:
                return False
            self._saved_retries -= 1
            return True


class Call:
    """One request, which is tried at one server after the other, each at most once.

    Args:
        servers: Those to choose from.
        timeout: Seconds for all attempts together.
    """

    def __init__(self, servers: Servers, timeout: float) -> None:
        self.servers = servers
        self.timeout = timeout
        self.end = time.monotonic() + timeout
        self.tried: list[int] = []
        self.errors: list[DetectionClientError] = []
        self.refused = 0

    def attempt(self) -> Attempt:
        """The next attempt, a context manager; it swallows an error that is no reason to end.

        Raises:
            DeadlineExceededError: No time is left.
        """
        return Attempt(self)

    def goes_on(self, error: DetectionClientError, *, doubtful: bool) -> bool:
        """Whether another server is asked after this error."""
        self.errors.append(error)
        if len(self.tried) == len(self.servers.urls) or time.monotonic() >= self.end:
            return False
        if isinstance(error, ServerUnavailableError):
            return True
        if doubtful and isinstance(error, DeadlineExceededError):
            return True  # such a server is given a part of the time alone, and the rest is left
        if isinstance(error, QueueFullError):
            self.refused += 1
            return self.refused == 1 and self.servers.spend_retry()
        return False

    def failure(self) -> DetectionClientError:
        """The error for the caller: the last one, with what the other servers said.

        A full queue goes before servers that are gone: asking them all again would not help.
        """
        full = [error for error in self.errors if isinstance(error, QueueFullError)]
        told = (full or self.errors)[-1]
        others = dict.fromkeys(str(error) for error in self.errors if str(error) != str(told))
        if not others:
            return told
        return type(told)(f"{told} (and {'; '.join(others)})")


class Attempt:
    """One server's turn at a call.

    Attributes:
        index: Which server it is.
        timeout: Seconds that it has.
    """

    def __init__(self, call: Call) -> None:
        now = time.monotonic()
        remaining = call.end - now
        if remaining <= 0:
            raise no_answer(call.servers.urls[call.tried[-1]], call.timeout)
        self._call = call
        self._server, self._doubtful = call.servers.take(call.tried)
        self._started = now
        self.index = self._server.index
        call.tried.append(self.index)
        is_last = len(call.tried) == len(call.servers.urls)
        self.timeout = remaining / 2 if self._doubtful and not is_last else remaining

    def __enter__(self) -> Attempt:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._call.servers.give(self._server, self._started, error)
        if not isinstance(error, DetectionClientError):
            return False
        if self._call.goes_on(error, doubtful=self._doubtful):
            return True
        failure = self._call.failure()
        if failure is error:
            return False
        raise failure from None
