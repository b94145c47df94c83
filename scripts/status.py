"""Show on one page how the servers are: counts, latencies, queues, memory, health.

Reads the metrics of Triton, its launcher and the gateway directly; no Prometheus is needed. Counts
are since the start of what is asked, rates and means over the time between two looks.

Exit status: 0 if all is well, 1 if a server is unhealthy, 2 if something cannot be reached.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

if TYPE_CHECKING:
    from status_page.look import Watcher

_TRITON, _LAUNCHER, _GATEWAY = "127.0.0.1:8002", "127.0.0.1:8003", "127.0.0.1:8080"
_NO_WIDTH = 120  # of what is no terminal
_FIRST = 0.5  # seconds to the first live page


def main(arguments: Sequence[str] | None = None) -> int:
    """Look and tell; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        from status_page.look import Addresses, Watcher
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        print(
            "error: reading metrics needs prometheus-client, which the extra `gateway` brings:"
            " make status, or pip install prometheus-client",
            file=sys.stderr,
        )
        return 2
    without = set(options.without)
    addresses = Addresses(
        tritons=options.triton,
        launchers=[] if "launcher" in without else options.launcher,
        gateways=[] if "gateway" in without else options.gateway or [_GATEWAY],
        optional=frozenset() if options.gateway else frozenset({_GATEWAY}),
    )
    try:
        watcher = Watcher(addresses)
        if options.watch is None:
            time.sleep(options.interval)
            return _tell(watcher, as_json=options.json)
        return _watch(watcher, options.watch, as_json=options.json)
    except KeyboardInterrupt:
        return 130


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _NO_WIDTH)


def _tell(watcher: Watcher, *, as_json: bool) -> int:
    from status_page.page import show

    status = watcher.status()
    if as_json:
        print(json.dumps(status.as_json()), flush=True)
    else:
        _console().print(show(status))
    return status.exit_status


def _watch(watcher: Watcher, seconds: float, *, as_json: bool) -> int:
    """Look again and again; Ctrl-C ends it with the exit status of the last look."""
    from status_page.page import show

    last = 0
    with contextlib.suppress(KeyboardInterrupt):
        if as_json or not sys.stdout.isatty():
            while True:
                time.sleep(seconds)
                last = _tell(watcher, as_json=as_json)
        with Live(console=_console(), auto_refresh=False, screen=True) as live:
            time.sleep(min(seconds, _FIRST))
            while True:
                status = watcher.status()
                last = status.exit_status
                live.update(show(status), refresh=True)
                time.sleep(seconds)
    return last


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("seconds are from 0.1 to 3600")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_argument_group("where, each several times if there are several servers")
    where.add_argument(
        "--triton", nargs="+", default=[_TRITON], metavar="HOST:PORT",
        help="metrics of Triton (default: %(default)s)",
    )  # fmt: skip
    where.add_argument(
        "--launcher", nargs="+", default=[_LAUNCHER], metavar="HOST:PORT",
        help="health endpoints of their launchers, in the same order (default: %(default)s)",
    )  # fmt: skip
    where.add_argument(
        "--gateway", nargs="+", metavar="HOST:PORT",
        help=f"gateways (default: {_GATEWAY}, if there is one)",
    )  # fmt: skip
    where.add_argument(
        "--without", nargs="+", choices=("launcher", "gateway"), default=[],
        help="do not look for these; without a launcher the models' health is not known",
    )  # fmt: skip
    how = parser.add_argument_group("how")
    how.add_argument(
        "--interval", type=_seconds, default=2.0, metavar="SECONDS",
        help="time between the two looks of a single page (default: %(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--watch", type=_seconds, metavar="SECONDS", help="look again and again, until Ctrl-C"
    )
    how.add_argument("--json", action="store_true", help="print a line of JSON for each look")
    return parser


if __name__ == "__main__":
    sys.exit(main())
