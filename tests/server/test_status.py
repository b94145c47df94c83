"""scripts/status.py against a real server and gateway."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event, Thread
from urllib.parse import urlsplit

import httpx
import pytest

from detection_client import DetectionClient, InvalidInputError
from local_server import TritonServer
from photos import PHOTOS, jpeg
from tests.server.conftest import on_any_ports
from tests.server.gateways import Gateway, gateway

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "status.py"


def addresses(server: TritonServer, *gateways: Gateway) -> list[str]:
    options = [
        "--triton", urlsplit(server.metrics_url).netloc,
        "--launcher", urlsplit(server.health_url).netloc,
    ]  # fmt: skip
    urls = [urlsplit(running.url).netloc for running in gateways]
    return [*options, *(["--gateway", *urls] if urls else ["--without", "gateway"])]


def status(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def running(server: TritonServer) -> Iterator[Gateway]:
    with gateway(server.grpc_url, "--max-wait", "30") as found:
        for name in PHOTOS:
            kind = {"Content-Type": "image/jpeg"}
            httpx.post(f"{found.url}/detect", content=jpeg(name), headers=kind, timeout=30)
        bad = httpx.post(f"{found.url}/detect", content=b"", headers={"Content-Type": "image/png"})
        assert bad.status_code == 400
        with DetectionClient(server.grpc_url) as client, pytest.raises(InvalidInputError):
            client.detect(b"no image")
        yield found


def test_the_page(server: TritonServer, running: Gateway) -> None:
    shown = status(*addresses(server, running))
    assert (shown.returncode, shown.stderr) == (0, "")
    for text in (
        "DetServe healthy",
        "all answer",
        "detection",
        "preprocess",
        "n/a",
        running.url[7:],
    ):
        assert text in shown.stdout


def test_the_numbers(server: TritonServer, running: Gateway) -> None:
    shown = status(*addresses(server, running), "--json", "--interval", "0.5")
    assert shown.returncode == 0, shown.stdout + shown.stderr
    document = json.loads(shown.stdout)
    (found,) = document["gateways"]
    assert (found["answered"], found["bad"], found["errors"], found["shed"]) == (4, 1, 0, 0)
    assert found["latency"]["source"] == "histogram, since the start"
    assert 0 < found["latency"]["p50"] <= found["latency"]["p99"]
    stages = {stage["model"]: stage for stage in document["stages"]}
    assert stages.keys() == {"detection", "preprocess", "detector", "postprocess"}
    assert stages["detection"]["answered"] >= 4
    assert stages["detection"]["failed"] >= 1
    (machine,) = document["servers"]
    assert machine["healthy"] is True
    assert 0 < machine["memory_used"] < machine["memory_total"]
    assert machine["own_memory"] > 10_000_000
    assert machine["gpus"] == []


def test_a_model_that_cannot_be_healed_is_exit_status_1(repository: Path) -> None:
    """Killed whenever it is back, until the launcher waits before it heals the model again."""
    ended = Event()

    def kill(server: TritonServer) -> None:
        while not ended.wait(0.1):
            if server.health()["status"] == "ok":
                for pid in [
                    pid for pid, name in server.stub_pids().items() if name == "preprocess"
                ]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    with on_any_ports(repository) as server:
        killer = Thread(target=kill, args=(server,))
        killer.start()
        try:
            deadline = time.monotonic() + 90
            while (shown := status(*addresses(server), "--interval", "0.1")).returncode != 1:
                assert time.monotonic() < deadline, shown.stdout
        finally:
            ended.set()
            killer.join()
        assert "failing: " in shown.stdout
        assert "preprocess" in shown.stdout


def test_a_server_that_is_not_there_is_exit_status_2() -> None:
    options = ("--triton", "127.0.0.1:1", "--without", "launcher", "gateway")
    shown = status(*options, "--interval", "0.1")
    assert shown.returncode == 2
    assert "no answer from http://127.0.0.1:1/metrics" in shown.stdout
    assert "Traceback" not in shown.stdout + shown.stderr


def test_watching_as_json_is_a_line_a_look_until_interrupted(
    server: TritonServer, running: Gateway
) -> None:
    command = [sys.executable, str(SCRIPT), *addresses(server, running), "--watch", "0.3", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert [look["status"] for look in looks] == ["healthy"] * 3


def test_watching_on_a_terminal_is_live_until_interrupted(server: TritonServer) -> None:
    with ExitStack() as stack:
        ours, its = pty.openpty()
        stack.callback(os.close, ours)
        command = [sys.executable, str(SCRIPT), *addresses(server), "--watch", "0.2"]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
        process = stack.enter_context(
            subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment)
        )
        os.close(its)
        text, deadline = b"", time.monotonic() + 40
        while text.count(b"rates and means") < 2:
            assert time.monotonic() < deadline, text
            text += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        while True:
            try:
                text += os.read(ours, 65536)
            except OSError:  # the terminal is closed
                break
        assert process.wait(20) == 0
    assert b"Traceback" not in text
