"""Run Prometheus on the servers of this machine, without containers.

It scrapes what deploy/prometheus/prometheus.yml says, at the addresses given here, with the same
rules. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from monitoring.config import local_config
from monitoring.programs import NODE_EXPORTERS, MonitoringError, answers, find, running

_TICK = 0.5  # seconds between looks at the programs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal; returns the exit status."""
    options = _parser().parse_args(arguments)
    targets = {
        "triton": options.triton,
        "launcher": options.launcher,
        "gateway": options.gateway,
        "host": options.host or [options.exporter],
        "prometheus": [options.listen],
    }
    targets |= {job: [] for job in options.without}
    config = local_config(targets, scrape_interval=options.scrape_interval)
    if options.show_config:
        print(config, end="")
        return 0
    ending = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ending.set())
    try:
        _run(options, config, ending)
    except MonitoringError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace, config: str, ending: threading.Event) -> None:
    prometheus = find("prometheus")
    if prometheus is None:
        raise MonitoringError(
            "there is no prometheus on PATH: apt-get install prometheus,"
            " or start it with COMPOSE_PROFILES=cpu,monitoring docker compose up"
        )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="detserve-monitor-")))
        (folder / "prometheus.yml").write_text(config)
        processes: dict[str, subprocess.Popen[bytes]] = {}
        url = f"http://{options.exporter}/metrics"  # Debian starts one by itself
        if not options.host and "host" not in options.without and not answers(url):
            exporter = find(*NODE_EXPORTERS)
            if exporter is None:
                raise MonitoringError(
                    "there is no node exporter on PATH: apt-get install prometheus-node-exporter,"
                    " name one that runs with --host, or leave it out with --without host"
                )
            command = [exporter, f"--web.listen-address={options.exporter}"]
            processes["the node exporter"] = stack.enter_context(running(command, url))
        command = [
            prometheus,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={options.data or folder / 'data'}",
            f"--web.listen-address={options.listen}",
            "--log.level=warn",
        ]
        url = f"http://{options.listen}"
        processes["Prometheus"] = stack.enter_context(running(command, f"{url}/-/ready"))
        print(f"Prometheus: {url} (targets: {url}/targets, alerts: {url}/alerts)", flush=True)
        while not ending.wait(_TICK):
            for name, process in processes.items():
                if process.poll() is not None:
                    raise MonitoringError(f"{name} has ended by itself: is its port taken?")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Run Prometheus on the servers of this machine, without containers."
    )
    for option, default, meaning in (
        ("--triton", "127.0.0.1:8002", "metrics of Triton"),
        ("--launcher", "127.0.0.1:8003", "health endpoints of launchers"),
        ("--gateway", "127.0.0.1:8080", "gateways"),
        ("--host", None, "node exporters (default: the one of --exporter)"),
    ):
        parser.add_argument(
            option,
            nargs="+",
            metavar="HOST:PORT",
            default=default and [default],
            help=f"{meaning} (default: {default})" if default else meaning,
        )
    parser.add_argument(
        "--exporter",
        default="127.0.0.1:9100",
        help="where it is, or is started",
        metavar="HOST:PORT",
    )
    parser.add_argument(
        "--without", choices=("gateway", "launcher", "host"), nargs="+", default=[],
        help="what there is none of",
    )  # fmt: skip
    parser.add_argument(
        "--listen", default="127.0.0.1:9090", help="of Prometheus itself", metavar="HOST:PORT"
    )
    parser.add_argument("--scrape-interval", help="such as 5s (default: the deployed one)")
    parser.add_argument("--data", type=Path, help="keep what is scraped in this folder")
    parser.add_argument(
        "--show-config", action="store_true", help="print the configuration and end"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
