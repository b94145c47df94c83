"""Models that cannot be loaded anew, and serve with the processes they have left meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator

from local_server._http import TritonError
from local_server._probe import Probe
from local_server._run import Run

_FIRST_PAUSE, _LAST_PAUSE = 5.0, 30.0  # seconds between attempts at loading one
_TRIES = 3  # so many inferences tell whether a model answers: a dead process fails some
_ANSWER_TIMEOUT = 10.0


class Reduced:
    """Which models these are, and when each is to be tried again; for one thread.

    Args:
        run: The server.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._due: dict[str, tuple[float, float]] = {}  # model -> next attempt, pause before it

    def __bool__(self) -> bool:
        return bool(self._due)

    def clear(self) -> None:
        """Forget them all: Triton is started again."""
        self._due.clear()

    def keep(self, probe: Probe, problem: str, pause: float = 0.0) -> bool:
        """Leave a model as it is for some time, if it answers; the health says what is wrong.

        Args:
            probe: Of the model.
            problem: Why it was not loaded.
            pause: How long the pause before this attempt was, in seconds.

        Returns:
            Whether it answers.
        """
        if not self._answers(probe):
            return False
        pause = min(2 * pause, _LAST_PAUSE) or _FIRST_PAUSE
        self._due[probe.model] = (time.monotonic() + pause, pause)
        action = f"it serves with the processes it has left; loading it again in {pause:.0f} s"
        self._run.log.note(f"{probe.model}: {action}")
        self._run.state.failing(probe.model, problem, action)
        return True

    def take_due(self) -> Iterator[tuple[str, float]]:
        """Take those that are to be tried now, each with its pause: it is time, or none is left."""
        living = set(self._run.stubs().values())
        for model, (due, pause) in list(self._due.items()):
            gone = model not in living or model not in self._run.probes
            if gone or time.monotonic() >= due:
                del self._due[model]
                yield model, pause

    def _answers(self, probe: Probe) -> bool:
        """Whether a model that has lost a process answers with those it has left."""
        if probe.model not in self._run.stubs().values():
            return False
        for _ in range(_TRIES):
            try:
                probe.ask(self._run.connection, _ANSWER_TIMEOUT)
            except TritonError as error:
                if error.refused or error.busy:
                    return True
            except OSError:
                continue
            else:
                return True
        return False
