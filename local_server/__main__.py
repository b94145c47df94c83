"""Serve a model repository in the foreground: `python -m local_server`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from local_server._errors import ServerError
from local_server._first_process import FORWARDED, stay_behind
from local_server._options import parse_options
from local_server._server import TritonServer


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it.

    Args:
        arguments: The command line, without the program.

    Returns:
        The exit status.
    """
    options = parse_options(arguments)
    if (status := stay_behind()) is not None:
        return status
    server = TritonServer(
        options.model_repository,
        host=options.host,
        http_port=options.http_port,
        grpc_port=options.grpc_port,
        metrics_port=options.metrics_port,
        health_port=options.health_port,
        cache_mb=options.cache_mb,
        log_file=options.log_file,
        show=_say,
        verbose=options.verbose,
        check_interval=options.check_interval,
        allow_model_control=options.allow_model_control,
        allow_shared_memory=options.allow_shared_memory,
        startup_timeout=options.startup_timeout,
        drain_timeout=options.drain_timeout,
        extra_arguments=options.triton,
    )
    ending = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        if ending.is_set():
            server.interrupt()
            return
        ending.set()
        raise KeyboardInterrupt

    for number in FORWARDED:
        signal.signal(number, end)
    try:
        _say(f"Starting Triton on {options.model_repository} ...")
        try:
            server.start()
            _greet(server)
            while True:
                signal.pause()
        except KeyboardInterrupt:
            _say("Stopping; Ctrl-C again kills Triton at once.")
        finally:
            ending.set()
            server.stop()
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _say("Stopped.")
    return 0


def _greet(server: TritonServer) -> None:
    for name, default in server.ports.moved.items():
        _say(f"Port {default} is taken: {name} has {getattr(server.ports, name)} instead.")
    _say(
        f"Ready: every model answers.\n"
        f"  gRPC     {server.grpc_url}\n"
        f"  HTTP     {server.http_url}\n"
        f"  metrics  {server.metrics_url}\n"
        f"  health   {server.health_url}\n"
        f"Try it:    {_detect_command()} photo.jpg --server {server.grpc_url}\n"
        f"Ctrl-C ends it."
    )


def _detect_command() -> str:
    """The command `detect` as it can be typed here: by its path if that is not searched."""
    if shutil.which("detect") is not None:
        return "detect"
    beside = Path(sys.executable).with_name("detect")
    return os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # `| head`; Triton's log must still be read
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
