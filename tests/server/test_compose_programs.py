"""The commands of the compose file for other people's images, given to Debian's same programs.

Versions differ from the images': this shows that the options exist and that the health checks'
addresses answer.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.container_files import ROOT, compose, mounts

SERVICES = compose()["services"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(program: str, arguments: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program of this machine with a service's arguments; it must live until it is ended."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"no {program} on PATH")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [path, *arguments], cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield process
            assert process.poll() is None, (folder / "log").read_text()
        finally:
            process.terminate()
            process.wait(30)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < deadline, "no answer"
        time.sleep(0.05)


def test_redis(tmp_path: Path) -> None:
    service, port = SERVICES["redis"], free_port()
    program, *arguments = service["command"]
    _, client, *check = service["healthcheck"]["test"]
    with running(program, [*arguments, "--port", str(port)], tmp_path) as process:
        deadline = time.monotonic() + 20
        while True:
            asked = subprocess.run(
                [client, "-p", str(port), *check], capture_output=True, text=True, timeout=10
            )
            if asked.stdout.strip() == "PONG":
                break
            assert process.poll() is None
            assert time.monotonic() < deadline, asked.stderr
            time.sleep(0.05)
    assert not list(tmp_path.glob("*.rdb"))


@pytest.mark.parametrize(
    ("service", "program"),
    [("prometheus", "prometheus"), ("node-exporter", "prometheus-node-exporter")],
)
def test_monitoring(service: str, program: str, tmp_path: Path) -> None:
    definition, port = SERVICES[service], free_port()
    places = {target: ROOT / source for source, target, _ in mounts(definition) if source[0] == "."}
    places |= {"/prometheus": tmp_path / "data", "/host": Path("/")}
    arguments = []
    for argument in definition["command"]:
        name, separator, value = argument.partition("=")
        arguments.append(f"{name}{separator}{places.get(value, value)}")
    arguments.append(f"--web.listen-address=127.0.0.1:{port}")
    inside = definition["healthcheck"]["test"][-1]
    url = httpx.URL(inside).copy_with(port=port)
    with running(program, arguments, tmp_path) as process:
        wait_for(str(url), process)
