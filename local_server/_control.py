"""How the programs of the server's owner may load and unload models, and its clients may not.

A server writes what that takes into a file in its temporary folder. The folder is its user's
alone, and goes when the server ends, however it ends. Triton has the same secret in its arguments,
which other users of the machine can read unless /proc is mounted with hidepid=2.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

__all__ = ["Control", "find_control", "write_control"]

_FILE = "control.json"


@dataclass(frozen=True, kw_only=True)
class Control:
    """What it takes to control the models of a running server of this machine and user.

    Attributes:
        launcher: The process of its launcher.
        host: The address it binds.
        http_port: Port of Triton's HTTP endpoint.
        grpc_port: Port of its gRPC endpoint.
        model_repository: The folder of models it serves.
        header: Name of the header that the secret is sent in.
        secret: The secret; None if every client may load and unload models.
    """

    launcher: int
    host: str
    http_port: int
    grpc_port: int
    model_repository: str
    header: str
    secret: str | None

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """Read a server's file; None if it is another user's, or its server has ended."""
        try:
            if file.parent.stat().st_uid != os.getuid() or file.parent.stat().st_mode & 0o077:
                return None
            control = cls(**json.loads(file.read_text(encoding="utf-8")))
            os.kill(control.launcher, 0)
        except (OSError, TypeError, ValueError):
            return None
        return control


def write_control(folder: Path, control: Control) -> None:
    """Write a server's file into its temporary folder."""
    descriptor = os.open(folder / _FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(control), file)


def find_control(url: str) -> Control | None:
    """Find the server of this machine and user that has an address.

    Args:
        url: Its gRPC or HTTP endpoint, such as `grpc://127.0.0.1:8001`.

    Returns:
        What it takes to control its models; None if no launcher of this user serves there.
    """
    parts = urlsplit(url if "://" in url else f"grpc://{url}")
    if parts.hostname is None:
        return None
    is_http = parts.scheme.startswith("http")
    port = parts.port or (8000 if is_http else 8001)
    for file in sorted(Path(tempfile.gettempdir()).glob(f"detserve-*/{_FILE}")):
        control = Control.read(file)
        if control is None:
            continue
        of_kind = control.http_port if is_http else control.grpc_port
        if port == of_kind and (parts.hostname == control.host or _is_loopback(parts.hostname)):
            return control
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(socket.gethostbyname(host)).is_loopback
    except OSError:
        return False
