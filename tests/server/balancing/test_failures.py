"""Servers that fail behind nginx, behind its active checks, and behind balancing clients."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from balancing.load import Record, run_load
from balancing.measure import BROKEN_MODEL, watching
from balancing.nginx import Nginx
from balancing.servers import ROOT, Launcher, free_ports
from detection_client import AsyncDetectionClient, DetectionClient, ServerUnavailableError
from photos import PHOTOS, jpeg
from tests.server.balancing.conftest import wait_until

CAT = jpeg("chelsea")
PROTOCOLS = ("grpc", "http")


def several(servers: Sequence[Launcher], protocol: str) -> list[str]:
    return [server.url(protocol) for server in servers]


def load(urls: dict[str, Any], servers: Sequence[Launcher]) -> Record:
    """Load in which the first server is killed, and comes back; clients do not retry."""

    def disturb(note: Callable[[str], None]) -> None:
        time.sleep(1.5)
        note("killed")
        servers[0].kill()
        time.sleep(2)
        servers[0].start()
        servers[0].wait_until_healthy()
        note("healthy")

    photos = [jpeg(name) for name in PHOTOS]
    return run_load(urls, servers, photos, disturb, concurrency=3, seconds=18.0, retries=0)


class TestLostServer:
    def test_behind_nginx(self, both: list[Launcher], nginx: Nginx) -> None:
        record = load({one: nginx.url(one) for one in PROTOCOLS}, both)
        # What was under way over gRPC on the server that was killed; HTTP is sent again by nginx.
        assert set(record.errors()) <= {"ServerUnavailableError"}, record.messages
        assert sum(record.errors("grpc").values()) <= 3, record.messages
        assert not record.errors("http"), record.messages
        killed = record.events["killed"]
        later = [a for answers in record.answers.values() for a in answers if a.moment > killed + 2]
        assert later
        assert not any(answer.error for answer in later)
        assert record.traffic.even_at(record.events["healthy"]) is not None

    def test_with_balancing_clients(self, both: list[Launcher]) -> None:
        record = load({one: several(both, one) for one in PROTOCOLS}, both)
        assert not record.errors(), record.messages
        assert record.traffic.even_at(record.events["healthy"]) is not None

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_all_are_lost(self, protocol: str) -> None:
        ports = free_ports(2)
        url = f"{protocol}://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}"
        with DetectionClient(url, retries=0) as client:
            with pytest.raises(ServerUnavailableError) as caught:
                client.detect(CAT)
            assert all(str(port) in str(caught.value) for port in ports)
            assert not client.server_ready()

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_all_are_lost_behind_nginx(self, protocol: str) -> None:
        ports = free_ports(7)
        changes = {
            "BALANCER_TRITONS": "127.0.0.1:{}:{} 127.0.0.1:{}:{}".format(*ports),
            "BALANCER_HTTP_PORT": str(ports[4]),
            "BALANCER_GRPC_PORT": str(ports[5]),
            "BALANCER_STATUS_PORT": str(ports[6]),
        }
        with (
            Nginx(changes) as nginx,
            DetectionClient(nginx.url(protocol), retries=0) as client,
            pytest.raises(ServerUnavailableError, match="found no server that answers"),
        ):
            client.detect(CAT)


class TestBalancingClient:
    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_every_server_gets_its_part(self, both: list[Launcher], protocol: str) -> None:
        before = [server.answered("detection") for server in both]
        with DetectionClient(several(both, protocol)) as client:
            assert client.server_ready()
            assert client.model_info().max_batch_size > 1
            for _ in range(6):
                assert [found.label for found in client.detect(CAT)] == ["cat"]
        after = [server.answered("detection") for server in both]
        assert all(now - then >= 2 for now, then in zip(after, before, strict=True))

    @pytest.mark.parametrize("protocol", PROTOCOLS)
    def test_asyncio_with_one_that_is_not_there(self, both: list[Launcher], protocol: str) -> None:
        async def ask() -> int:
            url = f"{protocol}://127.0.0.1:{free_ports(1)[0]}"
            async with AsyncDetectionClient([url, both[0].url(protocol)], retries=0) as client:
                assert await client.server_ready()
                return sum([len(await client.detect(CAT)) for _ in range(10)])

        assert asyncio.run(ask()) == 10

    def test_the_command(self, both: list[Launcher], tmp_path: Path) -> None:
        (tmp_path / "cat.jpg").write_bytes(CAT)
        gone = f"grpc://127.0.0.1:{free_ports(1)[0]}"
        server = f"{gone},{both[0].url('grpc').removeprefix('grpc://')}"
        done = subprocess.run(
            [sys.executable, "-m", "detection_client", "cat.jpg", "--server", server],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT / "clients")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert '"cat"' in done.stdout


class TestActiveChecks:
    def test_reading_the_lists_anew_loses_no_request(
        self, both: list[Launcher], nginx: Nginx
    ) -> None:
        def disturb(note: Callable[[str], None]) -> None:
            for _ in range(6):
                time.sleep(1)
                note("read")
                os.kill(nginx.pid, signal.SIGHUP)

        urls = {one: nginx.url(one) for one in PROTOCOLS}
        record = run_load(urls, both, [CAT], disturb, concurrency=4, seconds=8.0, retries=3)
        assert all(record.answers.values())
        assert not record.errors(), record.messages

    def test_a_server_with_a_dead_model_is_taken_out(
        self, both: list[Launcher], nginx: Nginx
    ) -> None:
        lists = nginx.folder / "servers" / "grpc.conf"
        sick = f"127.0.0.1:{both[0].ports['grpc']} "
        workers = children(nginx.pid)
        with watching(nginx.settings, "--interval", "0.2", "--timeout", "0.5"):
            with both[0].frozen_launcher():
                assert both[0].kill_model(BROKEN_MODEL)
                wait_until(lambda: lists.read_text().count(" down;") == 1)
                assert next(x for x in lists.read_text().split("\n") if sick in x).endswith("down;")
                assert both[0].ready()  # which is what Triton says
                wait_until(lambda: children(nginx.pid).isdisjoint(workers))
                for protocol in PROTOCOLS:
                    with DetectionClient(nginx.url(protocol), retries=0) as client:
                        for _ in range(6):
                            client.detect(CAT)
            both[0].wait_for_model(BROKEN_MODEL)
            wait_until(lambda: " down;" not in lists.read_text())
        assert not [path for path in lists.parent.iterdir() if path.name.startswith(".")]

    def test_the_last_server_stays(self, both: list[Launcher], nginx: Nginx) -> None:
        lists = nginx.folder / "servers"
        with watching(nginx.settings, "--interval", "0.2", "--timeout", "0.5") as checks:
            with both[0].frozen_launcher(), both[1].frozen_launcher():
                assert checks.stderr is not None
                while "all of them stay in" not in checks.stderr.readline():
                    assert checks.poll() is None
                wait_until(lambda: " down;" not in (lists / "grpc.conf").read_text())
                with DetectionClient(nginx.url("grpc")) as client:
                    client.detect(CAT)
            for server in both:
                server.wait_until_healthy()

    def test_settings_that_cannot_be_used(self, tmp_path: Path) -> None:
        def watch(**changes: str) -> str:
            done = subprocess.run(
                [sys.executable, str(ROOT / "scripts" / "balance.py"), "watch"],
                env={**os.environ, **changes},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 2
            return done.stderr

        assert "names no server" in watch(BALANCER_TRITONS="")
        assert "is not a port" in watch(BALANCER_TRITONS="a:b")
        assert "start nginx first" in watch(BALANCER_TRITONS="a", BALANCER_DIR=str(tmp_path))


def test_serve_runs_nginx_with_checks_and_leaves_nothing(both: list[Launcher]) -> None:
    http, grpc, status = (str(port) for port in free_ports(3))
    names = ("HTTP", "GRPC", "STATUS")
    options = [
        f"--set=BALANCER_{name}_PORT={port}"
        for name, port in zip(names, (http, grpc, status), strict=True)
    ]
    command = [sys.executable, str(ROOT / "scripts" / "balance.py"), "serve", *options]
    process = subprocess.Popen(
        [*command, *(server.entry for server in both)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        while "Ctrl-C" not in (line := process.stdout.readline()):
            assert line
        running = children(process.pid)
        assert len(running) == 2  # nginx and the checks
        with DetectionClient(f"grpc://127.0.0.1:{grpc}") as client:
            client.detect(CAT)
        commands = [
            Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").split() for pid in running
        ]
        (folder,) = (Path(line[line.index("-p") + 1]) for line in commands if "-p" in line)
        assert folder.is_dir()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert not any(Path(f"/proc/{pid}").exists() for pid in running)
        assert not folder.exists()
    finally:
        process.terminate()
        process.communicate(timeout=30)


def children(pid: int) -> set[int]:
    """The living child processes of a process."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return {int(word) for word in text.split()}
