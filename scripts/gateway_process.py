"""The REST gateway as a process of its own, for measurements."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_START_TIMEOUT_S = 60


@contextmanager
def running_gateway(server_url: str, arguments: Sequence[str]) -> Iterator[tuple[int, int]]:
    """A gateway before a server; its port and its process id.

    Args:
        server_url: Of the server, ``grpc://host:port``.
        arguments: Further options of the gateway.

    Raises:
        RuntimeError: It does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "gateway", "--server", server_url),
            *("--host", "127.0.0.1", "--port", str(port), *arguments),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1] / "clients")},
    )
    try:
        _wait_until_ready(process, port)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the gateway ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the gateway was not healthy within {_START_TIMEOUT_S} s")
