"""A Prometheus that scrapes a real server, gateway and host, with traffic of every kind."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
from websockets.sync.client import connect

from detection_client import DetectionClient, DetectionClientError
from photos import PHOTOS, jpeg
from tests.server.gateways import Gateway

__all__ = ["Prometheus", "free_port", "monitor", "traffic"]

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "monitor.py"
_BURST = 12  # requests at once, of which a gateway with little room refuses some


class Prometheus:
    """Asks a Prometheus.

    Args:
        url: Where it listens.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[Any]:
        """The samples that an expression has now."""
        result = self.get("query", query=expression)
        return result["result"] if result["resultType"] == "vector" else [result["result"]]

    def wait_for(self, expression: str, seconds: float = 30.0) -> list[Any]:
        """The samples of an expression, as soon as it has any, or none."""
        deadline = time.monotonic() + seconds
        while not (samples := self.query(expression)) and time.monotonic() < deadline:
            time.sleep(0.25)
        return samples


def free_port() -> int:
    """A port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def monitor(*options: str) -> Iterator[Prometheus]:
    """`scripts/monitor.py` with scrapes every second; it must end in peace."""
    listen = f"127.0.0.1:{free_port()}"
    exporter = f"127.0.0.1:{free_port()}"
    command = [
        sys.executable, str(SCRIPT), "--listen", listen, "--exporter", exporter,
        "--scrape-interval", "1s", *options,
    ]  # fmt: skip
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert f"http://{listen}" in process.stdout.readline()
            yield Prometheus(f"http://{listen}")
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0


@contextmanager
def traffic(server_url: str, gateway: Gateway) -> Iterator[None]:
    """Good, bad, late and refused requests, again and again until the context ends."""
    ended = Event()
    with (
        ThreadPoolExecutor(_BURST) as pool,
        httpx.Client(base_url=gateway.url, timeout=30) as http,
        DetectionClient(server_url) as client,
    ):

        def detect(image: bytes, **query: float) -> int:
            kind = {"Content-Type": "image/jpeg"}
            return http.post("/detect", content=image, headers=kind, params=query).status_code

        def work() -> None:
            quality = 40
            while not ended.is_set():
                quality = 40 + (quality - 39) % 50
                detect(jpeg("coffee"))  # from the cache, but for the first
                detect(jpeg("chelsea", quality))
                detect(b"no image")
                detect(jpeg("astronaut", quality), timeout=0.001)
                list(pool.map(detect, [jpeg(name, quality) for name in PHOTOS] * (_BURST // 4)))
                for image in (jpeg("coffee"), b"no image"):
                    with suppress(DetectionClientError):  # it is bad, or the server is busy
                        client.detect(image)
                with connect(f"{gateway.url.replace('http', 'ws', 1)}/live") as camera:
                    camera.send("{}")
                    camera.send(jpeg("chelsea"))
                    camera.recv()
                ended.wait(0.3)

        worker = Thread(target=work)
        worker.start()
        try:
            yield
        finally:
            ended.set()
            worker.join()
