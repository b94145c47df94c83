"""Loads a model anew: new processes in place of those it has."""

from __future__ import annotations

import time
from typing import Any

from local_server._cleanup import python_environments
from local_server._http import TritonError
from local_server._probe import Probe
from local_server._run import Run

_RELOAD_TIMEOUT = 60.0
_ANSWER_TIMEOUT = 10.0


def load_anew(run: Run, probe: Probe, serial: int | None) -> None:
    """Load a model anew, and have it answer an inference.

    Args:
        run: The server.
        probe: Of the model.
        serial: Tells this attempt from others, so that Triton starts the new processes before it
            ends the old ones; None to unload the model first.

    Raises:
        TritonError: If it cannot be loaded, or answers with an error.
        OSError: If it does not answer.
    """
    before, since = python_environments(), time.time()
    if serial is None:
        run.connection.unload(probe.model, _RELOAD_TIMEOUT)
        run.connection.load(probe.model, None, _RELOAD_TIMEOUT)
    else:
        # Loading a model again does nothing unless its configuration differs. This field
        # matters only to whom it names a GPU of; a parameter would reach the model's code.
        config = _config(run, probe)
        config["cc_model_filenames"] = {"reload": str(serial)}
        run.connection.load(probe.model, config, _RELOAD_TIMEOUT)
    run.leftovers.note_folders(before, since)
    started = time.monotonic()
    try:
        probe.ask(run.connection, _ANSWER_TIMEOUT)
    except TritonError as error:
        if not (error.busy or error.refused):  # a full queue is no reason to load it again
            raise
    run.state.answered(probe.model, time.monotonic() - started)


def _config(run: Run, probe: Probe) -> dict[str, Any]:
    """The configuration a model has now, where a promotion may just have given it another."""
    try:
        return run.connection.config(probe.model)
    except (TritonError, OSError):  # no version of it is ready
        return dict(probe.config)
