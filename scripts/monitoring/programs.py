"""Prometheus and the host's exporter as processes that end with us."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["NODE_EXPORTERS", "MonitoringError", "answers", "find", "running"]

NODE_EXPORTERS = ("prometheus-node-exporter", "node_exporter")  # Debian's name, and its own
_PATIENCE = 20.0  # seconds that a program may take to answer


class MonitoringError(Exception):
    """A program is missing or does not run; the message says what to do."""


def find(*names: str) -> str | None:
    """The path of the first of some programs that is there."""
    return next(filter(None, map(shutil.which, names)), None)


@contextmanager
def running(command: Sequence[str], ready_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program, from the moment it answers until the context ends.

    Args:
        command: The program and its arguments.
        ready_url: What answers 200 when the program is ready.

    Raises:
        MonitoringError: It has ended before, or does not answer.
    """
    if answers(ready_url):
        raise MonitoringError(
            f"{Path(command[0]).name} cannot run: something answers at {ready_url} already"
        )
    with tempfile.TemporaryFile() as output:
        # A session of its own: Ctrl-C reaches us, and we end it.
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            deadline = time.monotonic() + _PATIENCE
            while not answers(ready_url):
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    said = output.read().decode(errors="replace").strip().splitlines()[-3:]
                    raise MonitoringError(
                        f"{Path(command[0]).name} does not run: " + " / ".join(said)
                    )
                time.sleep(0.05)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def answers(url: str) -> bool:
    """Whether something answers there, and well."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:  # refused, or an error status
        return False
