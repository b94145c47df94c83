"""What an operator can set, on the command line or in the environment."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from detserve import __version__

__all__ = ["Settings", "parse_settings"]

_CORES = os.cpu_count() or 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of a gateway; `HELP` tells what each is for."""

    server: str = "grpc://127.0.0.1:8001"
    model: str = "detection"
    host: str = "127.0.0.1"
    port: int = 8080
    timeout: float = 10.0
    max_body_mb: float = 32.0
    max_image_mb: float = 20.0
    max_batch: int = 16
    max_in_flight: int = max(4, 2 * _CORES)
    max_wait: float = 0.08
    max_reading: int = 64
    read_timeout: float = 30.0
    rate: str = ""
    api_keys: Path | None = None
    redis_url: str = ""
    cache_ttl: float = 300.0
    live_connections: int = 16
    live_in_flight: int = 2
    live_origins: str = ""
    otlp_endpoint: str = ""
    grace: float = 15.0

    @property
    def max_body_bytes(self) -> int:
        """Largest request body."""
        return int(self.max_body_mb * 1_000_000)

    @property
    def max_image_bytes(self) -> int:
        """Largest encoded image."""
        return int(self.max_image_mb * 1_000_000)


HELP: Mapping[str, str] = {
    "server": "the DetServe server, grpc://host:8001 or http://host:8000",
    "model": "the served model",
    "host": "address to bind; 0.0.0.0 for all",
    "port": "port to bind; 0 for any free one",
    "timeout": "longest time for a request, in seconds; a client may ask for less",
    "max_body_mb": "largest request body",
    "max_image_mb": "largest image",
    "max_batch": "most images of one /batch_detect",
    "max_in_flight": "most images at the server at once; with a GPU at least twice the batch size",
    "max_wait": "longest expected wait, in seconds, before requests are refused with 503",
    "max_reading": "most requests under way at once, those still being received included",
    "read_timeout": "longest time to receive a body, in seconds",
    "rate": "most requests of one client, such as 20/second or 1000/minute (default: no limit)",
    "api_keys": "file of the SHA-256 hashes of the API keys, in hex, one a line (default: no keys;"
    " the variable may also hold the hashes themselves, separated by commas)",
    "redis_url": "redis://host:6379/0 of the result cache and the rate limits (default: none)",
    "cache_ttl": "how long results are cached, in seconds",
    "live_connections": "most cameras at once on /live",
    "live_in_flight": "most frames under way of one camera",
    "live_origins": "other origins whose pages may use /live, separated by commas",
    "otlp_endpoint": "where spans go, such as http://collector:4318/v1/traces (default: nowhere)",
    "grace": "how long requests under way may take at shutdown, in seconds",
}


def parse_settings(
    arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> Settings:
    """Settings from a command line, else from variables such as ``DETSERVE_SERVER``.

    Variables that serve other programs as well have the gateway's name in them where they would
    clash: ``DETSERVE_GATEWAY_HOST`` and ``DETSERVE_GATEWAY_PORT``. A wrong value ends the program
    with status 2 and names the option or the variable, unless an option overrides the variable.
    """
    parser = argparse.ArgumentParser(
        prog="detserve-gateway", description="A REST gateway and web page for a DetServe server."
    )
    readers: dict[str, tuple[str, Any]] = {}
    for name, default in ((field.name, field.default) for field in fields(Settings)):
        variable = "DETSERVE_" + ("GATEWAY_" if name in ("host", "port") else "") + name.upper()
        kind = Path if name == "api_keys" else _kind_of(name, default)
        readers[name] = variable, kind
        given = str(environment.get(variable) or default).replace("%", "%%")
        shown = "" if default in ("", None) else f" ({given})"
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            type=kind,
            metavar=name.upper(),
            help=f"{HELP[name]}{shown} [{variable}]",
        )
    parser.add_argument("--version", action="version", version=f"detserve-gateway {__version__}")
    given_values = vars(parser.parse_args(arguments))
    for name, (variable, kind) in readers.items():
        if name not in given_values and (text := environment.get(variable)):
            try:
                given_values[name] = kind(text)
            except (ValueError, argparse.ArgumentTypeError) as error:
                parser.error(f"variable {variable}: {error}")
    return Settings(**given_values)


def _kind_of(name: str, default: Any) -> Any:
    if isinstance(default, str):
        return str

    def number(text: str) -> Any:
        value = type(default)(text)
        if not (value >= 0 if name in ("port", "max_wait", "grace") else value > 0):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    number.__name__ = type(default).__name__
    return number
