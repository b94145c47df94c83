"""Ports: Triton's defaults where they are free, others where nobody asked for a certain one."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from local_server._errors import PortBusyError, ServerError

DEFAULT_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002, "health": 8003}


@dataclass(frozen=True)
class Ports:
    """The ports of one server, and which of them are not the default ones.

    Attributes:
        http: Triton's HTTP endpoint.
        grpc: Triton's gRPC endpoint.
        metrics: Triton's metrics endpoint.
        health: The supervisor's health endpoint.
        moved: For each endpoint whose default port was busy, that default.
    """

    http: int
    grpc: int
    metrics: int
    health: int
    moved: Mapping[str, int]


def bind(host: str, port: int) -> socket.socket:
    """Bind a TCP port as a server would, not minding connections that are closing down.

    Args:
        host: Address to bind.
        port: Port to bind; 0 lets the system choose.

    Returns:
        The bound socket; it does not listen yet.

    Raises:
        OSError: If the port is taken or the address is not of this machine.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def is_free(host: str, port: int) -> bool:
    """Whether a server could bind this port now."""
    try:
        bind(host, port).close()
    except OSError:
        return False
    return True


def choose_ports(host: str, requested: Mapping[str, int | None]) -> Ports:
    """Choose the four ports of a server.

    Args:
        host: Address the server will bind.
        requested: For each of ``http``, ``grpc``, ``metrics`` and ``health``: a port, which must be
            free; 0 for any free one; None for the default or, where that is taken, any free one.

    Returns:
        Four different ports that were free a moment ago.

    Raises:
        PortBusyError: If a port that was asked for is taken, or asked for twice.
        ServerError: If the address cannot be bound at all.
    """
    if ":" in host:
        raise ServerError(f"{host}: IPv6 addresses are not supported; give an IPv4 address or name")
    asked = [port for port in requested.values() if port]
    chosen: dict[str, int] = {}
    moved: dict[str, int] = {}
    held: list[socket.socket] = []  # so that the system does not offer one port twice
    try:
        for name, default in DEFAULT_PORTS.items():
            port = requested.get(name)
            if port and asked.count(port) > 1:
                raise PortBusyError(f"port {port} is asked for more than once")
            if port and not is_free(host, port):
                raise PortBusyError(
                    f"port {port} ({name}) is taken: choose another with --{name}-port, "
                    f"or leave the option out to get a free one"
                )
            if port is None and default not in asked and is_free(host, default):
                port = default
            if not port:
                held.append(bind(host, 0))
                if requested.get(name) is None:
                    moved[name] = default
                port = held[-1].getsockname()[1]
            chosen[name] = port
    except OSError as error:
        raise ServerError(f"cannot bind {host}: {error.strerror or error}") from error
    finally:
        for bound in held:
            bound.close()
    return Ports(**chosen, moved=moved)
