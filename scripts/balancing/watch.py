"""`balance.py watch`: the active checks, until told to end."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from balancing.checker import Checker
from balancing.health import KINDS, parse_servers

__all__ = ["WatchError", "make_checker", "watch"]


class WatchError(Exception):
    """The settings name no server, or no balancer."""


def make_checker(settings: Mapping[str, str], *, fall: int, rise: int, timeout: float) -> Checker:
    """The checker of a balancer.

    Args:
        settings: Those of the balancer, as in `balancer.env`.
        fall: Failed checks until a server is taken out.
        rise: Good checks until it is back.
        timeout: Seconds that a health endpoint may take.

    Raises:
        WatchError: They name no server, one in a wrong form, or no folder of a balancer.
    """
    try:
        hosts = {kind: parse_servers(kind, settings.get(name, "")) for name, kind in KINDS.items()}
    except ValueError as error:
        raise WatchError(str(error)) from None
    hosts = {kind: servers for kind, servers in hosts.items() if servers}
    if not hosts:
        raise WatchError("BALANCER_TRITONS names no server")
    folder = Path(settings.get("BALANCER_DIR", "/tmp/balancer"))
    if not (folder / "servers").is_dir():
        raise WatchError(f"{folder} is not the folder of a balancer: start nginx first")
    max_fails = settings.get("BALANCER_MAX_FAILS", "3")
    fail_timeout = settings.get("BALANCER_FAIL_TIMEOUT", "3s")
    return Checker(
        folder=folder,
        hosts=hosts,
        options=f"max_fails={max_fails} fail_timeout={fail_timeout}",
        fall=fall,
        rise=rise,
        timeout=timeout,
        say=_say,
    )


def watch(checker: Checker, interval: float) -> None:
    """Check every ``interval`` seconds until SIGINT or SIGTERM."""
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # they are waited for, between the checks
    started = time.monotonic()
    while True:
        try:
            checker.check()
        except OSError as error:  # a full disk, say: the servers still have to be watched
            _say(f"the lists cannot be written: {error}")
        started = max(started + interval, time.monotonic())
        if signal.sigtimedwait(ends, max(0.0, started - time.monotonic())):
            return


def _say(line: str) -> None:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    print(f"{moment} {line}", file=sys.stderr, flush=True)
