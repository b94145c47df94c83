"""What a failing server costs clients, with nginx before the servers and with balancing clients."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from balancing.load import Disturb, run_load
from balancing.nginx import Nginx, NginxError
from balancing.servers import Launcher, free_ports
from photos import PHOTOS, jpeg

__all__ = ["FAILURES", "WAYS", "Row", "as_json", "balancer", "measure", "table", "watching"]

PROTOCOLS = ("grpc", "http")
# Failure -> what is done, in words of a table.
FAILURES = {
    "server": "a server is killed, and started again",
    "model": "a model's process of a server dies, and its launcher hangs",
}
# Way -> in words of a table.
WAYS = {
    "passive": "nginx without active checks",
    "nginx": "nginx with active checks",
    "client": "clients with three addresses",
}
BROKEN_MODEL = "postprocess"
_SCRIPT = Path(__file__).resolve().parents[1] / "balance.py"
# When things happen, as parts of the load's time.
_FAILS, _BACK = 0.15, 0.45
_ATTEMPTS = 5  # at finding ports that nobody takes before nginx does


@dataclass(frozen=True, slots=True)
class Row:
    """One protocol of one load.

    Attributes:
        failure: A key of `FAILURES`.
        way: A key of `WAYS`.
        retries: The client's.
        protocol: ``grpc`` or ``http``.
        requests: Requests sent.
        errors: Those that failed, by the kind of their error.
        longest_ms: Longest latency of the requests sent after the failure.
        ready_lies: How often in the failure Triton called itself ready, and how often it was asked.
        healthy_s: From the start of the server, or of its launcher, until it was healthy.
        even_s: From then until a second and a half began in which every server had its part of the
            traffic; None where that did not come within the load.
    """

    failure: str
    way: str
    retries: int
    protocol: str
    requests: int
    errors: dict[str, int]
    longest_ms: float
    ready_lies: tuple[int, int]
    healthy_s: float
    even_s: float | None


@contextmanager
def watching(settings: Mapping[str, str], *options: str) -> Iterator[subprocess.Popen[str]]:
    """`balance.py watch` as a process; its log can be read from its standard error."""
    process = subprocess.Popen(
        [sys.executable, str(_SCRIPT), "watch", *options],
        env={**os.environ, **settings},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


@contextmanager
def balancer(servers: Sequence[Launcher], **changes: str) -> Iterator[Nginx]:
    """Run nginx before these servers, on free ports."""
    tritons = " ".join(server.entry for server in servers)
    for attempt in range(_ATTEMPTS):
        names = ("BALANCER_HTTP_PORT", "BALANCER_GRPC_PORT", "BALANCER_STATUS_PORT")
        own = dict(zip(names, map(str, free_ports(3)), strict=True))
        nginx = Nginx({**own, "BALANCER_TRITONS": tritons, **changes})
        try:
            nginx.start()
        except NginxError as error:
            nginx.stop()
            if "Address already in use" not in str(error) or attempt == _ATTEMPTS - 1:
                raise
        else:
            break
    try:
        yield nginx
    finally:
        nginx.stop()


@contextmanager
def _way(name: str, servers: Sequence[Launcher]) -> Iterator[dict[str, str | Sequence[str]]]:
    """What clients are given for each protocol."""
    if name == "client":
        yield {one: [server.url(one) for server in servers] for one in PROTOCOLS}
        return
    with balancer(servers) as nginx:
        urls: dict[str, str | Sequence[str]] = {one: nginx.url(one) for one in PROTOCOLS}
        if name == "passive":
            yield urls
            return
        with watching(nginx.settings):
            yield urls


def _kill_server(server: Launcher, seconds: float, readiness: list[bool]) -> Disturb:
    del readiness  # it has no Triton to ask

    def disturb(note: Callable[[str], None]) -> None:
        time.sleep(_FAILS * seconds)
        note("failed")
        server.kill()
        time.sleep((_BACK - _FAILS) * seconds)
        note("back")
        server.start()
        server.wait_until_healthy()
        note("healthy")

    return disturb


def _break_model(server: Launcher, seconds: float, readiness: list[bool]) -> Disturb:
    def disturb(note: Callable[[str], None]) -> None:
        time.sleep(_FAILS * seconds)
        note("failed")
        with server.frozen_launcher():  # else it would mend the model within a second
            server.kill_model(BROKEN_MODEL)
            end = time.monotonic() + (_BACK - _FAILS) * seconds
            while time.monotonic() < end:
                readiness.append(server.ready())
                time.sleep(0.2)
            note("back")
        server.wait_for_model(BROKEN_MODEL)
        server.wait_until_healthy()
        note("healthy")

    return disturb


def measure(
    servers: Sequence[Launcher],
    failure: str,
    way: str,
    *,
    retries: int,
    concurrency: int,
    seconds: float,
) -> list[Row]:
    """Run one load in which the first server fails.

    Args:
        servers: All of them healthy; they are so again in the end.
        failure: A key of `FAILURES`.
        way: A key of `WAYS`.
        retries: The client's.
        concurrency: Requests under way at once over each protocol.
        seconds: How long requests are sent.

    Returns:
        One row for each protocol.
    """
    make = {"server": _kill_server, "model": _break_model}[failure]
    readiness: list[bool] = []
    photos = [jpeg(name) for name in PHOTOS]
    with _way(way, servers) as urls:
        record = run_load(
            urls,
            servers,
            photos,
            make(servers[0], seconds, readiness),
            concurrency=concurrency,
            seconds=seconds,
            retries=retries,
        )
    events = record.events
    even = record.traffic.even_at(events["healthy"])
    return [
        Row(
            failure=failure,
            way=way,
            retries=retries,
            protocol=protocol,
            requests=len(record.answers[protocol]),
            errors=dict(sorted(record.errors(protocol).items())),
            longest_ms=record.longest_s(protocol, events["failed"], seconds) * 1e3,
            ready_lies=(sum(readiness), len(readiness)),
            healthy_s=events["healthy"] - events["back"],
            even_s=None if even is None else even - events["healthy"],
        )
        for protocol in PROTOCOLS
    ]


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    lines = [
        "| failure | way | retries | protocol | requests | errors | longest ms | healthy again s |"
        " even again s |",
        "|---|---|--:|---|--:|---|--:|--:|--:|",
    ]
    for row in rows:
        errors = ", ".join(f"{count} {kind}" for kind, count in row.errors.items()) or "none"
        even = "-" if row.even_s is None else f"{row.even_s:.1f}"
        lines.append(
            f"| {FAILURES[row.failure]} | {WAYS[row.way]} | {row.retries} | {row.protocol} |"
            f" {row.requests} | {errors} | {row.longest_ms:.0f} | {row.healthy_s:.1f} | {even} |"
        )
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The rows for a file."""
    return [asdict(row) for row in rows]
