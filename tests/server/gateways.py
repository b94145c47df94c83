"""Gateways as processes of their own, as a user runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

__all__ = ["Gateway", "gateway"]

CLIENTS = Path(__file__).resolve().parents[2] / "clients"


@dataclass
class Gateway:
    """A gateway that runs.

    Attributes:
        url: Where it listens.
        process: Its process.
        log: Its access log so far.
    """

    url: str
    process: subprocess.Popen[str]
    log: list[str] = field(default_factory=list)


@contextmanager
def gateway(server_url: str, *options: str) -> Iterator[Gateway]:
    """A gateway for a server, on any free port; it must end in peace."""
    command = [sys.executable, "-m", "gateway", "--server", server_url, "--port", "0", *options]
    process = subprocess.Popen(
        command,
        cwd=CLIENTS,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        first = process.stderr.readline()
        match = re.search(r"http://\S+", first)
        assert match, first + process.stderr.read()
        running = Gateway(match[0], process)
        errors: list[str] = []
        readers = [
            Thread(target=running.log.extend, args=(process.stdout,)),
            Thread(target=errors.extend, args=(process.stderr,)),
        ]
        for reader in readers:
            reader.start()
        try:
            yield running
        finally:
            process.terminate()
            process.wait(30)
            for reader in readers:
                reader.join()
        assert not errors, "".join(errors)[-2000:]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
