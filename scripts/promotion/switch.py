"""The switch of a running server from one generation to another, and back if it is no good."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from local_server import unused_models
from promotion.errors import PromotionError
from promotion.generations import Generations
from promotion.model_server import ModelServer
from promotion.stages import Stages

__all__ = ["Switch"]

_RETURN = 60.0  # seconds that a server which has just died has to come back
_UNLOAD = 5.0  # seconds to wait for a model to be gone; it may have requests for longer


class Switch:
    """What is loaded on a server, and which generation its public name means.

    Args:
        server: The server.
        generations: Those of the ensemble.
        stages: Where to tell what is done.
    """

    def __init__(self, server: ModelServer, generations: Generations, stages: Stages) -> None:
        self._server = server
        self._generations = generations
        self._stages = stages

    def served(self) -> int | None:
        """The generation that the server serves; None where it says nothing of generations.

        Raises:
            PromotionError: The ensemble is not loaded.
        """
        number = self._server.parameters(self._generations.ensemble).get("generation", "")
        return int(number) if number.isdecimal() else None

    def tidy(self) -> None:
        """Undo what an interrupted promotion has left, on the server and on disk.

        Raises:
            PromotionError: The server does not serve what the repository says, and cannot.
        """
        generations, served = self._generations, self.served()
        if served is not None and not generations.knows(served):
            raise PromotionError(
                f"the server has generation {served} of {generations.ensemble}, of which"
                f" {generations.repository} knows nothing: give its own folder as --repository, or"
                " start the server again if this is it"
            )
        if served is not None and served != generations.current:
            with self._stages.stage("tidy") as stage:
                stage.say(
                    f"the server has generation {served}, the repository {generations.current}:"
                    " an interrupted promotion; back to what the repository says"
                )
                self._load(generations.current)
        self.unload_unused()
        generations.clear_up()

    def try_out(self, number: int) -> None:
        """Load a generation beside the current one, under the candidate's name.

        Raises:
            PromotionError: A model does not load.
        """
        for model in self._generations.models(number):
            self._server.load_if_needed(model)
        self._generations.show_candidate(number)
        self._server.load(self._generations.candidate)

    def to(self, number: int, check: Callable[[], None]) -> None:
        """Give the public name to a generation; back to the current one unless it does well.

        Requests that are under way end on the generation that they began with.

        Args:
            number: The generation; its models are loaded.
            check: Raises if it does not do well.

        Raises:
            PromotionError: The server has not served it throughout, or the way back failed.
        """
        before = self._generations.current
        proven = False
        try:
            with self._stages.stage("switch") as stage:
                self._load(number)
                stage.say(f"{self._generations.ensemble} is generation {number} now")
            check()
            self._must_serve(number)
            with _uninterrupted():
                self._generations.commit(number)
            # A server that has ended before the commit is back with the configuration of then.
            self._must_serve(number)
            proven = True
        finally:
            if not proven:
                with _uninterrupted():
                    self._back(before)

    def unload_unused(self) -> list[str]:
        """Unload what this ensemble has had and none uses; returns what still has requests.

        What others have had is theirs to unload: one may be about to become what they serve.
        """
        own = self._generations.all_models()
        unused = (unused_models(self._generations.repository) & own) - {self._generations.candidate}
        # The candidate first: its steps then have one user less.
        models = [self._generations.candidate, *sorted(unused)]
        loaded = [model for model in models if self._server.is_loaded(model)]
        return [model for model in loaded if not self._server.unload(model, _UNLOAD)]

    def _must_serve(self, number: int) -> None:
        if self.served() != number:
            raise PromotionError(
                f"the server has started anew meanwhile, without generation {number}: see its log"
            )

    def _load(self, number: int) -> None:
        self._generations.make_version(number)
        self._server.load(self._generations.ensemble, self._generations.config(number))

    def _back(self, current: int) -> None:
        with self._stages.stage("roll back") as stage:
            if self._generations.current != current:
                self._generations.commit(current)
            deadline = time.monotonic() + _RETURN
            while True:
                try:
                    self._load(current)
                    break
                except PromotionError as error:
                    # A server that has died comes back with what the repository says: `current`.
                    if time.monotonic() > deadline:
                        raise PromotionError(
                            f"the way back to generation {current} failed as well: {error}. The"
                            " repository is as it was: start the server again"
                        ) from error
                    time.sleep(0.5)
            stage.say(
                f"{self._generations.ensemble} is generation {current} again", serving=current
            )


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Take no notice of Ctrl-C and SIGTERM: half of this would be worse than either end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # which gets no signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def repository_of(control_path: str | None, asked: Path | None) -> Path:
    """The repository to change: the server's own.

    Args:
        control_path: What the server's launcher says that it serves, if it is one of ours.
        asked: What the user says.

    Raises:
        PromotionError: The two say different things, or nothing.
    """
    if control_path is None:
        if asked is None:
            raise PromotionError(
                "no server of yours runs at that address: start one with `make serve`, or give the"
                " address that it has printed as --server. Of another Triton give its model"
                " repository as --repository DIR"
            )
        return asked
    served = Path(control_path)
    if asked is not None and asked.resolve() != served.resolve():
        raise PromotionError(
            f"the server serves {served}, not {asked}: leave --repository out, or give another"
            " --server"
        )
    return served
