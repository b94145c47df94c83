"""Triton's log file where the disk is full."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from local_server._log import Log

FULL = Path("/dev/full")
ROOT = Path(__file__).resolve().parents[2]

LIMITED = """
import resource, signal, sys
from pathlib import Path
from local_server._log import Log

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file, shown = Path(sys.argv[1]), []
log = Log(shown.append, file, verbose=False)
log.note("first")
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
log.note("second")
log.note("third")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.note("fourth")
log.close()
print(repr(shown))
"""


def test_lines_are_written(tmp_path: Path) -> None:
    log = Log(None, tmp_path / "log", verbose=False)
    log.add("I0101 00:00:00.000000 1 a.cc:1] one")
    log.note("two")
    log.close()
    assert (tmp_path / "log").read_text() == "I0101 00:00:00.000000 1 a.cc:1] one\ntwo\n"


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_full_disk_is_said_once_and_ends_nothing() -> None:
    shown: list[str] = []
    log = Log(shown.append, FULL, verbose=False)
    log.note("one")
    log.note("two")
    log.add("I0101 00:00:00.000000 1 a.cc:1] three")
    log.close()
    warning = (
        "The log file /dev/full cannot be written: No space left on device; going on without it."
    )
    assert shown == [warning, "one", "two"]
    assert log.lines() == ["I0101 00:00:00.000000 1 a.cc:1] three"]


def test_lines_are_written_again_once_there_is_room(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: a write is cut short, then refused."""
    file = tmp_path / "log"
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert file.read_text() == "first\nseco\nfourth\n"
    assert "cannot be written" in ran.stdout
    assert ran.stdout.index("is written again") > ran.stdout.index("third")


def test_a_terminal_that_cannot_be_written_ends_nothing() -> None:
    def show(_line: str) -> None:
        with FULL.open("w") as file:
            file.write("line")

    log = Log(show, None, verbose=False)
    log.note("one")
    log.add("two")
    assert log.lines() == ["two"]
