"""Processes of the server killed or stopped under load."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable

from robustness.processes import server_processes, stubs_of
from robustness.trial import Case, Trial

__all__ = ["CASES"]

UNNOTICED_S = 3.0  # a health endpoint that has not said anything by then never will


def _hurt(trial: Trial, pids: list[int], number: signal.Signals) -> None:
    with trial.dying(pids):
        for pid in pids:
            os.kill(pid, number)


def hurt_stub(trial: Trial, *, model: str, number: signal.Signals = signal.SIGKILL) -> None:
    """Hurt one of the processes of a model."""
    stubs = stubs_of(trial.service.launcher.pid)
    _hurt(trial, [next(pid for pid, name in stubs.items() if name == model)], number)


def _all_stubs(trial: Trial) -> None:
    _hurt(trial, list(stubs_of(trial.service.launcher.pid)), signal.SIGKILL)


def _triton(trial: Trial, *, number: signal.Signals) -> None:
    launcher = trial.service.launcher.pid
    triton = server_processes(launcher)["triton"]
    _hurt(trial, [triton], number)
    restarted = trial.wait_until(
        lambda: server_processes(launcher).get("triton", triton) != triton, 15
    )
    trial.check("the launcher has started Triton again", restarted)


def _launcher(trial: Trial) -> None:
    launcher = trial.service.launcher.pid
    triton = server_processes(launcher)["triton"]
    with trial.dying([launcher, triton]):  # its cleaner ends Triton
        os.kill(launcher, signal.SIGKILL)
    restarted = trial.wait_until(lambda: trial.service.launcher.pid != launcher, 15)
    trial.check("the restart policy has started the launcher again", restarted)


def _cleaner(trial: Trial) -> None:
    _hurt(trial, [server_processes(trial.service.launcher.pid)["cleaner"]], signal.SIGKILL)
    time.sleep(UNNOTICED_S)
    trial.check("no request has failed", not _failed_since(trial))


def _gateway(trial: Trial) -> None:
    gateway = trial.service.gateway.pid
    _hurt(trial, [gateway], signal.SIGKILL)
    restarted = trial.wait_until(lambda: trial.service.gateway.pid != gateway, 15)
    trial.check("the restart policy has started the gateway again", restarted)


def _failed_since(trial: Trial) -> bool:
    ended = trial.traffic.between(trial.hit or trial.start, time.monotonic())
    return any(request.error for request in ended)


def _stub(model: str, number: signal.Signals = signal.SIGKILL) -> Callable[[Trial], None]:
    return functools.partial(hurt_stub, model=model, number=number)


CASES = (
    *(
        Case(f"kill-{model}", f"kill -9 of one process of {model}", _stub(model))
        for model in ("preprocess", "detector", "postprocess")
    ),
    Case("kill-models", "kill -9 of every process of every model", _all_stubs),
    Case(
        "stop-preprocess",
        "SIGSTOP of one process of preprocess",
        _stub("preprocess", signal.SIGSTOP),
    ),
    Case("kill-triton", "kill -9 of Triton", functools.partial(_triton, number=signal.SIGKILL)),
    Case("stop-triton", "SIGSTOP of Triton", functools.partial(_triton, number=signal.SIGSTOP)),
    Case("kill-launcher", "kill -9 of the launcher", _launcher),
    Case("kill-cleaner", "kill -9 of the launcher's cleaning process", _cleaner),
    Case("kill-gateway", "kill -9 of the gateway", _gateway),
)
