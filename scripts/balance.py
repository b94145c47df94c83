"""Balance several Tritons: measure what failing servers cost, run nginx, or check its servers.

balance.py measure   three Tritons, nginx and balancing clients; servers fail under load
balance.py serve     nginx with active checks before servers of yours, until Ctrl-C
balance.py watch     the active checks alone, beside an nginx that runs (as in a container)
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from balancing.watch import WatchError, make_checker, watch

ROOT = Path(__file__).resolve().parents[1]
FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    options = _parser().parse_args(arguments)
    run = {"measure": _measure, "serve": _serve, "watch": _watch}[options.command]
    try:
        return run(options)
    except KeyboardInterrupt:
        return INTERRUPTED


def _measure(options: argparse.Namespace) -> int:
    # Imported when needed: the checks have to run with nothing but Python.
    from tqdm import tqdm

    from balancing.measure import as_json, measure, table
    from balancing.nginx import NginxError, find_nginx
    from balancing.servers import ServerFailedError, launchers
    from machine import processor_name

    plan = [
        (failure, way, retries)
        for failure in options.failures
        for way in options.ways
        for retries in options.retries
    ]
    rows = []
    try:
        find_nginx()
        print(f"Starting {options.servers} Tritons ...", file=sys.stderr)
        with launchers(options.servers, options.repository) as servers:
            for failure, way, retries in tqdm(plan, unit="load", disable=not sys.stderr.isatty()):
                rows += measure(
                    servers,
                    failure,
                    way,
                    retries=retries,
                    concurrency=options.concurrency,
                    seconds=options.seconds,
                )
    except (NginxError, ServerFailedError) as error:
        print(f"balance: {error}", file=sys.stderr)
        return UNUSABLE
    cores = len(os.sched_getaffinity(0))
    print(
        f"{options.servers} Tritons on {cores} cores ({processor_name()}), closed loops of"
        f" {options.concurrency} over gRPC and as many over HTTP, {options.seconds:g} s each\n"
    )
    print(table(rows))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    document = {"processor": processor_name(), "cores": cores, "rows": as_json(rows)}
    options.output.write_text(json.dumps(document, indent=2) + "\n")
    lost = sum(sum(row.errors.values()) for row in rows if row.way != "passive" and row.retries > 0)
    if options.max_errors is not None and lost > options.max_errors:
        print(
            f"balance: {lost} requests of clients that retry failed,"
            f" {options.max_errors} were allowed",
            file=sys.stderr,
        )
        return FAILED
    return 0


def _serve(options: argparse.Namespace) -> int:
    from balancing.nginx import Nginx, NginxError

    changes = dict(entry.partition("=")[::2] for entry in options.set)
    changes["BALANCER_TRITONS"] = " ".join(options.tritons)
    changes["BALANCER_GATEWAYS"] = " ".join(options.gateway)

    def end(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        with Nginx(changes) as nginx:
            command = [sys.executable, str(Path(__file__).resolve()), "watch"]
            with subprocess.Popen(
                command, env={**os.environ, **nginx.settings}, start_new_session=True
            ) as checks:
                try:
                    for protocol in ("grpc", "http", *(["gateway"] if options.gateway else [])):
                        print(f"{protocol:8}{nginx.url(protocol)}")
                    print(f"status  {nginx.url('status')}/status\nCtrl-C ends it.", flush=True)
                    while checks.poll() is None and nginx.running():
                        time.sleep(0.2)
                finally:
                    checks.terminate()
            print("balance: nginx or its checks have ended", file=sys.stderr)
            return FAILED
    except NginxError as error:
        print(f"balance: {error}", file=sys.stderr)
        return UNUSABLE


def _watch(options: argparse.Namespace) -> int:
    try:
        checker = make_checker(
            os.environ, fall=options.fall, rise=options.rise, timeout=options.timeout
        )
    except WatchError as error:
        print(f"balance: {error}", file=sys.stderr)
        return UNUSABLE
    watch(checker, options.interval)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="balance.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit status: 0 done, 1 too many errors or nginx has ended, 2 wrong usage or"
        " something is missing",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = commands.add_parser("measure", help="let servers fail under load, and count the errors")
    add = one.add_argument
    add("--servers", type=_count, default=3, help="Tritons (default: %(default)s)")
    add("--concurrency", type=_count, default=3, help="requests at once, a protocol (%(default)s)")
    add("--seconds", type=_positive, default=24.0, help="of each load (default: %(default)g)")
    add("--retries", type=int, nargs="+", default=[0, 3], help="of the client (default: 0 3)")
    add("--failures", nargs="+", choices=["server", "model"], default=["server", "model"])
    ways = ["passive", "nginx", "client"]
    add("--ways", nargs="+", choices=ways, default=ways)
    add("--repository", type=Path, default=ROOT / "model_repository", metavar="DIR")
    add("--output", type=Path, default=ROOT / "build" / "balance.json", metavar="FILE")
    add(
        "--max-errors",
        type=int,
        metavar="N",
        help="exit with 1 where clients that retry saw more errors (without the way passive)",
    )

    one = commands.add_parser("serve", help="run nginx with active checks before servers of yours")
    add = one.add_argument
    add("tritons", nargs="+", metavar="HOST[:HTTP[:GRPC[:HEALTH]]]")
    add("--gateway", action="append", default=[], metavar="HOST[:PORT]")
    add(
        "--set",
        action="append",
        default=[],
        metavar="BALANCER_NAME=VALUE",
        help="a setting of deploy/nginx/balancer.env, such as BALANCER_GRPC_PORT=9001",
    )

    one = commands.add_parser(
        "watch",
        help="check the servers of a running nginx; its settings come from the environment",
        description="Take servers out of nginx's lists while their health endpoint says that they"
        " do not work, and put them back. The settings are BALANCER_TRITONS, BALANCER_GATEWAYS,"
        " BALANCER_DIR and so on in the environment, as in deploy/nginx/balancer.env. It must be"
        " allowed to signal nginx: the same user and, in containers, the same process namespace.",
    )
    add = one.add_argument
    add("--interval", type=_positive, default=1.0, help="seconds between checks (%(default)g)")
    add("--timeout", type=_positive, default=1.0, help="seconds a server has (%(default)g)")
    add("--fall", type=_count, default=2, help="failed checks until it is out (%(default)s)")
    add("--rise", type=_count, default=2, help="good checks until it is back (%(default)s)")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
