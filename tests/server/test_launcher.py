"""The launcher: its ports, its errors, and that nothing of a server is left, however it ends."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_server import PortBusyError, ServerError, TritonServer
from local_server._ports import DEFAULT_PORTS, is_free
from tests.server.conftest import REPOSITORY, leftovers, on_any_ports, wait_until_clean


class Launcher:
    """`python -m local_server` in a terminal of its own, so to say."""

    def __init__(self, repository: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "local_server", "--model-repository", str(repository)]
        self.process = subprocess.Popen(
            [*command, *arguments],
            cwd=REPOSITORY.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""
        self.ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_until_ready(self) -> None:
        assert self.ready.wait(120), self.output

    def ports(self) -> list[int]:
        return [int(port) for port in re.findall(r"://127\.0\.0\.1:(\d+)", self.output)]

    def url(self, name: str) -> str:
        found = re.search(rf"^  {name} +(\S+)$", self.output, re.MULTILINE)
        assert found, self.output
        return found[1]

    def ctrl_c(self) -> None:
        """Interrupt the whole foreground process group, as a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, timeout: float = 30) -> int:
        status = self.process.wait(timeout)
        self._reader.join(10)
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.output += line
                if line.startswith("Ctrl-C ends it"):
                    self.ready.set()
        self.ready.set()


@pytest.fixture
def launcher(repository: Path) -> Iterator[Launcher]:
    running = Launcher(
        repository,
        "--http-port=0", "--grpc-port=0", "--metrics-port=0", "--health-port=0",
    )  # fmt: skip
    running.wait_until_ready()
    yield running
    running.close()


def assert_nothing_left(launcher: Launcher) -> None:
    wait_until_clean(launcher.process.pid)
    assert [port for port in launcher.ports() if not is_free("127.0.0.1", port)] == []


def test_says_where_it_is_and_what_to_try(launcher: Launcher) -> None:
    assert "Ready: every model answers." in launcher.output
    assert f"detect photo.jpg --server {launcher.url('gRPC')}" in launcher.output
    for url in (f"{launcher.url('HTTP')}/v2", launcher.url("metrics"), launcher.url("health")):
        with urllib.request.urlopen(url, timeout=10) as response:
            assert response.status == 200
    # Without --verbose Triton's own lines stay away unless something is wrong.
    assert not re.search(r"^[IWE]\d{4} ", launcher.output, re.MULTILINE), launcher.output


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
def test_ends_in_order(launcher: Launcher, with_signal: signal.Signals) -> None:
    os.kill(launcher.process.pid, with_signal)
    assert launcher.wait() == 0
    assert launcher.output.endswith("Stopped.\n")
    assert leftovers(launcher.process.pid) == []
    assert_nothing_left(launcher)


def test_second_ctrl_c_kills_at_once(launcher: Launcher) -> None:
    launcher.ctrl_c()
    time.sleep(0.3)
    began = time.monotonic()
    launcher.ctrl_c()
    assert launcher.wait() == 0
    assert time.monotonic() - began < 2.5  # in order it takes longer
    assert_nothing_left(launcher)


def test_ctrl_c_during_the_start(repository: Path) -> None:
    launcher = Launcher(repository, "--http-port=0", "--grpc-port=0", "--metrics-port=0")
    try:
        deadline = time.monotonic() + 20
        while not any("tritonserver" in left for left in leftovers(launcher.process.pid)):
            assert time.monotonic() < deadline, launcher.output
            time.sleep(0.01)
        launcher.ctrl_c()
        assert launcher.wait() == 0
        assert "Ready" not in launcher.output
        assert_nothing_left(launcher)
    finally:
        launcher.close()


def test_killed_launcher(launcher: Launcher) -> None:
    launcher.process.kill()
    launcher.wait()
    assert_nothing_left(launcher)


def test_killed_with_its_process_group(launcher: Launcher) -> None:
    os.killpg(launcher.process.pid, signal.SIGKILL)
    launcher.wait()
    assert_nothing_left(launcher)


def test_killed_launcher_with_stopped_processes(launcher: Launcher) -> None:
    for left in leftovers(launcher.process.pid):
        if match := re.match(r"process (\d+): \S*triton", left):
            os.kill(int(match[1]), signal.SIGSTOP)
    launcher.process.kill()
    launcher.wait()
    assert_nothing_left(launcher)


def test_killed_guardian(repository: Path) -> None:
    """Whoever kills the process that cleans up still gets a clean end from the launcher."""
    with on_any_ports(repository) as server:
        guardians = [
            int(match[1])
            for left in leftovers(os.getpid())
            if server.prefix in left and (match := re.match(r"process (\d+): .*_guardian", left))
        ]
        assert len(guardians) == 1
        os.kill(guardians[0], signal.SIGKILL)
        prefix = server.prefix
    assert [left for left in leftovers(os.getpid()) if prefix in left] == []


def test_busy_default_port(repository: Path) -> None:
    busy = {name: port for name, port in DEFAULT_PORTS.items() if is_free("127.0.0.1", port)}
    sockets = [socket.create_server(("127.0.0.1", port)) for port in busy.values()]
    launcher = Launcher(repository)
    try:
        launcher.wait_until_ready()
        for name, port in DEFAULT_PORTS.items():
            assert f"Port {port} is taken: {name} has " in launcher.output
        assert not set(launcher.ports()) & set(DEFAULT_PORTS.values())
        launcher.ctrl_c()
        assert launcher.wait() == 0
        assert_nothing_left(launcher)
    finally:
        launcher.close()
        for held in sockets:
            held.close()


def test_busy_port_that_was_asked_for(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        launcher = Launcher(repository, f"--grpc-port={port}")
        try:
            assert launcher.wait() == 1
        finally:
            launcher.close()
        assert f"port {port} (grpc) is taken" in launcher.output
        assert_nothing_left(launcher)


def test_port_taken_while_triton_starts(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our looking at a port and Triton's binding it, it is anybody's."""
    from local_server import _server
    from local_server._ports import choose_ports

    chosen = []

    def choose(*arguments: object) -> object:
        ports = choose_ports(*arguments)  # type: ignore[arg-type]
        chosen.append(ports)
        if len(chosen) == 1:
            taken.append(socket.create_server(("127.0.0.1", ports.grpc)))
        return ports

    taken: list[socket.socket] = []
    monkeypatch.setattr(_server, "choose_ports", choose)
    try:
        with on_any_ports(repository) as server:
            assert len(chosen) == 2
            assert server.ports == chosen[1]
    finally:
        for held in taken:
            held.close()


@pytest.fixture
def copied(repository: Path, tmp_path: Path) -> Path:
    """A copy of the repository, to be spoilt."""
    return Path(shutil.copytree(repository, tmp_path / "models"))


def test_missing_detector(copied: Path) -> None:
    for file in (copied / "detector" / "1").glob("model.*"):
        file.unlink()
    with pytest.raises(ServerError, match=r"'detector' does not load.*make model"):
        on_any_ports(copied).start()


def test_broken_config(copied: Path) -> None:
    with (copied / "preprocess" / "config.pbtxt").open("a") as config:
        config.write("\nnonsense: 1\n")
    with pytest.raises(ServerError, match=r'no field named "nonsense"'):
        on_any_ports(copied).start()


def test_broken_model(copied: Path) -> None:
    (copied / "postprocess" / "1" / "model.py").write_text("import nonsense\n")
    lines: list[str] = []
    with pytest.raises(ServerError, match=r"'postprocess' does not load.*named 'nonsense'"):
        on_any_ports(copied, show=lines.append).start()
    assert lines == []  # all is in the error


def test_startup_timeout(copied: Path) -> None:
    (copied / "postprocess" / "1" / "model.py").write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(ServerError, match="not ready after 3 s"):
        on_any_ports(copied, startup_timeout=3).start()


def test_log_file(repository: Path, tmp_path: Path) -> None:
    with on_any_ports(repository, log_file=tmp_path / "log"):
        pass
    log = (tmp_path / "log").read_text()
    assert "successfully loaded 'detection'" in log
    assert "successfully unloaded" in log


def test_api(server: TritonServer) -> None:
    assert re.fullmatch(r"grpc://127\.0\.0\.1:\d+", server.grpc_url)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", server.http_url)
    assert server.metrics_url.endswith("/metrics")
    assert server.health_url.endswith("/health")
    assert Path(f"/proc/{server.pid}/comm").read_text().strip() == "tritonserver"
    with pytest.raises(ServerError, match="started already"):
        server.start()


def test_not_started(repository: Path) -> None:
    server = TritonServer(repository)
    server.stop()  # harmless
    with pytest.raises(ServerError, match="not started"):
        _ = server.grpc_url
    with pytest.raises(ServerError, match="not started"):
        _ = server.pid


def test_starts_again(repository: Path) -> None:
    server = on_any_ports(repository)
    for _ in range(2):
        with server:
            assert server.health()["status"] == "ok"
    assert issubclass(PortBusyError, ServerError)
