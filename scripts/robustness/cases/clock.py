"""Steps of the clock, in every process of the service."""

from __future__ import annotations

import functools
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from robustness.processes import SHARED_MEMORY
from robustness.trial import Case, Trial

__all__ = ["CASES", "clock_environment", "find_library", "remove_segments"]

CLOCK_FILE = "clock"
HOUR_S = 3600
LOOK_S = 4.0


# libfaketime 0.9.10 moves the deadlines of clock_nanosleep also of clocks that it leaves alone, and
# the sleeps of Python 3.11 then fail. This takes its place: a sleep is not what is tested.
SLEEP = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *until,
                    struct timespec *left) {
  int before = errno;
  int code = syscall(SYS_clock_nanosleep, clock, flags, until, left) == 0 ? 0 : errno;
  errno = before;
  return code;
}
"""


def find_library() -> Path | None:
    """Debian's libfaketime, for programs with threads."""
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


def clock_environment(folder: Path) -> dict[str, str]:
    """Variables with which a process takes the step of its clock from a file, at once."""
    (folder / CLOCK_FILE).write_text("+0\n")
    source, library = folder / "sleep.c", folder / "sleep.so"
    source.write_text(SLEEP)
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
    return {
        "LD_PRELOAD": f"{library}:{find_library()}",
        "FAKETIME_TIMESTAMP_FILE": str(folder / CLOCK_FILE),
        "FAKETIME_NO_CACHE": "1",
        # A clock that is set moves the time of day alone; the two names are of two versions.
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def remove_segments() -> None:
    """Remove the shared memory of libfaketime whose process, by which it is named, was killed."""
    for pattern in ("faketime_shm_*", "sem.faketime_sem_*"):
        for segment in SHARED_MEMORY.glob(pattern):
            if not psutil.pid_exists(int(segment.name.rpartition("_")[2])):
                segment.unlink(missing_ok=True)


def _step(trial: Trial, *, seconds: int) -> None:
    trial.now_hit()
    began = time.monotonic()
    file = trial.folder / CLOCK_FILE
    new = file.with_suffix(".new")
    new.write_text(f"{seconds:+d}\n")
    new.replace(file)
    time.sleep(LOOK_S)
    document = trial.service.health() or {}
    answer = document.get("models", {}).get("detection", {}).get("last_answer")
    shown = (datetime.fromisoformat(answer) - datetime.now(UTC)).total_seconds() if answer else 0
    trial.check(
        f"the launcher's clock has moved by {seconds} s ({shown:+.0f} s)", abs(shown - seconds) < 60
    )
    failed = [one for one in trial.traffic.between(began, time.monotonic()) if one.error]
    trial.check("no request has failed", not failed)
    trial.check("requests are answered", trial.answered_since(began) > 0)


CASES = (
    Case(
        "clock-forward",
        "the clock set an hour ahead",
        functools.partial(_step, seconds=HOUR_S),
        setting="clock",
    ),
    Case(
        "clock-back",
        "the clock set back, to an hour behind",
        functools.partial(_step, seconds=-HOUR_S),
        setting="clock",
    ),
)
