"""Run a load test: start Triton (and the gateway) unless told where they are, then Locust.

Exit status: 0; 1 an SLO was missed; 2 wrong options, or no server; 3 the figures differ from
Triton's own statistics. Options that are not listed go to Locust (`locust --help`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from detection_client import DetectionClient, DetectionClientError
from gateway_process import running_gateway
from loadtest.options import OPTIONS, LoadOptions, add_options
from local_server import ServerError, TritonServer
from photos import PHOTOS, jpeg

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parents[1]
_WARM_UP_ROUNDS = 5
_CONNECT_TIMEOUT_S = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit status."""
    parser = _parser()
    own, for_locust = parser.parse_known_args(arguments)
    try:
        LoadOptions.from_namespace(own)
        with ExitStack() as stack:
            _find_servers(own, stack)
            return _run_locust(own, for_locust)
    except (ServerError, DetectionClientError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    tags = ("grpc", "http", "rest")
    add("--tags", nargs="+", choices=tags, default=["grpc"], help="protocols (grpc)")
    add(
        *("--server", "-s"),
        nargs="+",
        metavar="URL",
        default=[],
        help="a running server, grpc://host:8001 and http://host:8000 (default: start one)",
    )
    add("--web", action="store_true", help="with Locust's web page, http://127.0.0.1:8089")
    add("--processes", type=int, default=1, help="processes that generate the load (1)")
    add("--model-repository", default="model_repository", help="of the Triton that is started")
    add_options(parser.add_argument_group("load test"))
    return parser


def _find_servers(own: argparse.Namespace, stack: ExitStack) -> None:
    if own.server:
        for url in own.server:
            if not url.startswith(("grpc://", "grpcs://", "http://", "https://")):
                raise ValueError(
                    f"--server {url}: an address is grpc://host:8001 or http://host:8000"
                )
            name = "grpc_server" if url.startswith("grpc") else "http_server"
            setattr(own, name, url)
        _check_servers(own)
        return
    print("Starting Triton ...", file=sys.stderr, flush=True)
    # Unsupervised: the supervisor's own inferences would be in Triton's statistics.
    server = stack.enter_context(
        TritonServer(
            own.model_repository,
            http_port=0,
            grpc_port=0,
            metrics_port=0,
            health_port=0,
            supervise=False,
        )
    )
    own.grpc_server, own.http_server = server.grpc_url, server.http_url
    own.statistics = server.grpc_url
    with DetectionClient(server.grpc_url, timeout=30) as client:
        for name in PHOTOS * _WARM_UP_ROUNDS:
            client.detect(jpeg(name))
    if "rest" in own.tags:
        port, _ = stack.enter_context(running_gateway(server.grpc_url, ()))
        own.gateway = f"http://127.0.0.1:{port}"


def _check_servers(own: argparse.Namespace) -> None:
    """Refuse to load what was not named, as this machine's own servers, and what is not there."""
    defaults = {flag: default for flag, default, _ in OPTIONS}
    for tag, flag in (("grpc", "--grpc-server"), ("http", "--http-server"), ("rest", "--gateway")):
        if tag not in own.tags:
            continue
        url = getattr(own, flag[2:].replace("-", "_"))
        named = tag != "rest" and any(one.startswith(tag) for one in own.server)
        if url == defaults[flag] and not named:
            wanted = "--gateway" if tag == "rest" else f"{tag}://host:port in --server"
            raise ValueError(f"--tags {tag}: say where to send it, with {wanted}")
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
        if not parts.hostname or not port:
            raise ValueError(f"{url!r} is no address of a server with its port")
        try:
            socket.create_connection((parts.hostname, port), _CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise ValueError(f"there is no server at {url}: {error}") from None


def _run_locust(own: argparse.Namespace, for_locust: Sequence[str]) -> int:
    command = [sys.executable, "-m", "locust", "-f", str(_ROOT / "loadtest" / "locustfile.py")]
    command += ["--web-host", "127.0.0.1"] if own.web else ["--headless", "--only-summary"]
    for flag, default, _ in OPTIONS:
        value = getattr(own, flag[2:].replace("-", "_"))
        if value != default:
            command += [flag] if default is False else [f"{flag}={value}"]
    if own.processes > 1:
        command += ["--processes", str(own.processes), "--expect-workers-max-wait", "30"]
        port = str(_free_port())
        command += ["--master-bind-host", "127.0.0.1", "--master-bind-port", port]
        command += ["--master-port", port]
    command += ["--tags", *own.tags, *for_locust]
    paths = [str(_ROOT), str(_ROOT / "clients"), str(_ROOT / "scripts")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    # A session of its own: Ctrl-C reaches it through this process alone, so once.
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    previous = signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGINT))
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, previous)
        with contextlib.suppress(ProcessLookupError):  # workers that a lost master has left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
