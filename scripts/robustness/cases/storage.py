"""Full disks, and a model file spoiled while it is served."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from robustness.cases.killing import hurt_stub
from robustness.processes import server_processes, stubs_of
from robustness.trial import Case, Trial

__all__ = ["CASES", "LOG_MOUNT"]

LOG_MOUNT = "logs"  # in the case's folder: a small file system of the launcher's own
FULL_S = 3.0
FLIPPED = 4096


def fill(folder: Path) -> int:
    """Take all the room that a file system has; returns how many bytes that was."""
    taken = 0
    with (folder / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    taken += file.write(bytes(size))
    return taken


def _room(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def _full_log(trial: Trial) -> None:
    launcher = trial.service.launcher
    # The file system is mounted where only the launcher sees it.
    folder = Path(f"/proc/{launcher.pid}/root{trial.folder}/{LOG_MOUNT}")
    log = folder / "triton.log"
    trial.check("the log was written until then", log.stat().st_size > 0)
    trial.now_hit()
    fill(folder)
    trial.check("the disk is full", _room(folder) == 0)
    size = log.stat().st_size
    time.sleep(FULL_S)
    hurt_stub(trial, model="postprocess")  # something to log
    healed = trial.wait_until(lambda: "answers again" in launcher.tail(40), 15)
    trial.check("a killed process is replaced meanwhile", healed)
    trial.check("the launcher warns", "log file" in launcher.tail(200))
    (folder / "fill").unlink()
    grown = trial.wait_until(lambda: log.stat().st_size > size, 15)
    trial.check("the log goes on once there is room", grown)


def _full_shared_memory(trial: Trial) -> None:
    folder = Path(f"/proc/{trial.service.launcher.pid}/root/dev/shm")
    trial.now_hit()
    fill(folder)
    began = time.monotonic()
    time.sleep(FULL_S)
    trial.check("what is loaded goes on answering", trial.answered_since(began) > 0)
    (folder / "fill").unlink()


def _corrupt_model(trial: Trial) -> None:
    service, file = trial.service, trial.repository / "detector" / "1" / "model.onnx"
    good = file.read_bytes()
    spoiled = bytearray(good)
    spoiled[:FLIPPED] = bytes(byte ^ 0xFF for byte in spoiled[:FLIPPED])
    trial.now_hit()
    began = time.monotonic()
    try:
        file.write_bytes(spoiled)
        time.sleep(2)
        failed = [one for one in trial.traffic.between(began, time.monotonic()) if one.error]
        trial.check("what is loaded goes on serving", not failed)
        launcher = service.launcher
        detectors = [pid for pid, model in stubs_of(launcher.pid).items() if model == "detector"]
        hurt_stub(trial, model="detector")  # a new process has to load the file
        told = trial.wait_until(lambda: _says(trial, "detector"), 15)
        trial.check("the health endpoint says that the detector fails", told)
        failing = trial.wait_until(lambda: "reloading it failed" in launcher.tail(60), 15)
        trial.check("the launcher says that it cannot be loaded", failing)
        time.sleep(8)  # longer than the launcher's attempts at first
        began = time.monotonic()
        answers = trial.wait_until(lambda: trial.answered_since(began) > 0, 5)
        trial.check("the other processes go on serving", answers)
        living = set(detectors) & stubs_of(launcher.pid).keys()
        trial.check("the other processes have not been ended", len(living) == len(detectors) - 1)
        trial.check("the health endpoint still says so", _says(trial, "detector"))
    finally:
        file.write_bytes(good)


def _says(trial: Trial, model: str) -> bool:
    document = trial.service.health() or {}
    return bool(document.get("models", {}).get(model, {}).get("status") == "failing")


def _corrupt_model_at_start(trial: Trial) -> None:
    """The launcher starts on a spoiled file, as after a bad copy; it must not pretend to serve."""
    launcher, file = trial.service.launcher, trial.repository / "detector" / "1" / "model.onnx"
    good = file.read_bytes()
    trial.now_hit()
    try:
        file.write_bytes(good[: len(good) // 2])
        with trial.dying([launcher.pid, server_processes(launcher.pid)["triton"]]):
            launcher.send(signal.SIGKILL)
        told = trial.wait_until(lambda: "'detector' does not load" in launcher.tail(60), 30)
        trial.check("the launcher says which model does not load", told)
        trial.check("the health endpoint is not well", bool(trial.service.problems()))
    finally:
        file.write_bytes(good)


CASES = (
    Case(
        "corrupt-model",
        "the detector's file spoiled on disk, then kill -9 of one of its processes",
        _corrupt_model,
    ),
    Case(
        "corrupt-restart",
        "the detector's file cut short, then kill -9 of the launcher",
        _corrupt_model_at_start,
        spares_clients=False,  # nothing serves until the file is whole again
    ),
    Case("full-log-disk", "a full disk under Triton's log", _full_log, setting="small-log-disk"),
    Case("full-shm", "a full /dev/shm", _full_shared_memory, setting="small-shm"),
)
