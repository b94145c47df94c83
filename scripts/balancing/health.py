"""The servers behind a balancer, and what their health endpoints say."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["KINDS", "Kind", "Server", "ask", "look_up", "parse_servers"]

_MOST_BYTES = 65536


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of server that nginx balances.

    Attributes:
        name: What it is called in the log.
        ports: The list of servers (its file's name) -> which port goes there.
        defaults: Its ports in the order of the settings.
        health: Which of them answers GET /health.
    """

    name: str
    ports: Mapping[str, int]
    defaults: tuple[int, ...]
    health: int


KINDS = {
    "BALANCER_TRITONS": Kind("triton", {"http": 0, "grpc": 1}, (8000, 8001, 8003), 2),
    "BALANCER_GATEWAYS": Kind("gateway", {"gateway": 0}, (8080,), 0),
}


@dataclass(frozen=True)
class Server:
    """One server at one address."""

    kind: Kind
    address: str
    ports: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind.name} {self.address}:{self.ports[self.kind.health]}"


def parse_servers(kind: Kind, text: str) -> list[tuple[str, tuple[int, ...]]]:
    """Read ``host[:port...] host...`` into names with all their ports.

    Raises:
        ValueError: A port is none, or there are too many.
    """
    found = []
    for word in text.split():
        host, *given = word.split(":")
        if not host or len(given) > len(kind.defaults):
            raise ValueError(f"{word!r} is not host with up to {len(kind.defaults)} ports")
        ports = list(kind.defaults)
        for index, port in enumerate(given):
            if port:
                if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
                    raise ValueError(f"{word!r}: {port!r} is not a port")
                ports[index] = int(port)
        found.append((host, tuple(ports)))
    return found


def look_up(host: str) -> list[str]:
    """The IPv4 addresses of a name, none where it is not known."""
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({str(entry[4][0]) for entry in found})


def ask(server: Server, timeout: float) -> str:
    """Ask a server for its health; what is wrong with it, or nothing."""
    connection = http.client.HTTPConnection(
        server.address, server.ports[server.kind.health], timeout=timeout
    )
    try:
        connection.request("GET", "/health", headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        return f"no answer ({error or type(error).__name__})"
    finally:
        connection.close()
    return "" if answer.status == 200 else _reason(answer.status, body)


def _reason(status: int, body: bytes) -> str:
    """What a launcher says of its server and its models."""
    problems: list[str] = []
    with contextlib.suppress(ValueError, AttributeError):
        document = json.loads(body)
        problems = [document.get("problem") or ""]
        for name, model in document.get("models", {}).items():
            problems.append(f"{name}: {model['problem']}" if model.get("problem") else "")
    said = "; ".join(problem for problem in problems if problem)
    return f"status {status}" + (f", {said}" if said else "")
