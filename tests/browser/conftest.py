"""A real Triton, a real gateway and a real Chromium, and pages that must stay clean."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, FilePayload, Page, Request, expect, sync_playwright

from local_server import TritonServer
from photos import jpeg

ROOT = Path(__file__).resolve().parents[2]
REPOSITORY = ROOT / "model_repository"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]


@dataclass
class Visit:
    """A page of the gateway, and what it asked for and complained of.

    Attributes:
        page: The page, loaded.
        origin: Where it came from, as ``http://127.0.0.1:8080``.
        requests: ``METHOD path`` of every request so far.
        foreign: Addresses of requests to anywhere else.
        complaints: Errors and warnings of its console, and uncaught exceptions.
        expected: Words of the complaints that a test means to provoke.
        files: How many files have been chosen.
    """

    page: Page
    origin: str
    requests: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    expected: str = ""
    files: int = 0

    def record(self, request: Request) -> None:
        """Note a request of the page."""
        if request.url.startswith(("blob:", "data:")):
            return
        if not request.url.startswith(self.origin + "/"):
            self.foreign.append(request.url)
        path = request.url.removeprefix(self.origin).partition("?")[0]
        self.requests.append(f"{request.method} {path}")

    def choose(self, *files: tuple[str, str, bytes]) -> None:
        """Choose files, each a name, a type and bytes, and wait until all are answered."""
        payloads: list[FilePayload] = [{"name": n, "mimeType": t, "buffer": b} for n, t, b in files]
        self.page.set_input_files("#files", payloads)
        self.files += len(files)
        done = "#gallery [data-state=done], #gallery [data-state=error]"
        expect(self.page.locator(done)).to_have_count(self.files, timeout=20_000)

    def wait_for_rate(self) -> None:
        """Wait until live mode shows frames per second."""
        expect(self.page.locator("#rate")).to_contain_text(re.compile(r"[1-9].* fps, \d+ ms"))

    @property
    def boxes(self) -> int:
        """How many boxes are drawn."""
        return self.page.locator("#overlay g[data-class]").count()

    @property
    def rows(self) -> int:
        """How many rows the table has."""
        return self.page.locator("#rows tr").count()

    def slide(self, slider: str, value: float) -> None:
        """Move a slider as a finger does."""
        self.page.locator(f"#{slider}").fill(str(value))


def photo(name: str) -> tuple[str, str, bytes]:
    """A demo photo as a file to choose."""
    return f"{name}.jpg", "image/jpeg", jpeg(name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(process: subprocess.Popen[bytes], origin: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the gateway ended with {process.returncode}")
        try:
            if httpx.get(f"{origin}/health").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail("the gateway does not come up")


@pytest.fixture(scope="session")
def triton() -> Iterator[TritonServer]:
    """A Triton on free ports."""
    detector = REPOSITORY / "detector" / "1"
    if not any((detector / name).exists() for name in ("model.onnx", "model.plan")):
        pytest.skip("no detector: run `make model`")
    ports: dict[str, Any] = dict.fromkeys(
        ("http_port", "grpc_port", "metrics_port", "health_port"), 0
    )
    with TritonServer(REPOSITORY, **ports) as running:
        yield running


@pytest.fixture(scope="session")
def gateway(triton: TritonServer) -> Iterator[str]:
    """The gateway as a process of its own; gives its origin."""
    port = _free_port()
    origin = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "gateway"]
    command += ["--server", triton.grpc_url, "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'clients'}:{ROOT}"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_until_up(process, origin)
        yield origin
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Debian's Chromium with a camera that it makes up."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def options() -> dict[str, Any]:
    """What the browser's window is like; a test overrides it by parametrising."""
    return {}


@pytest.fixture
def visit(browser: Browser, gateway: str, options: dict[str, Any]) -> Iterator[Visit]:
    """A fresh page; afterwards nothing must have left the origin, and no error been logged."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=gateway)
    page = context.new_page()
    page.set_default_timeout(20_000)
    made = Visit(page, gateway)
    page.on("request", made.record)
    page.on("pageerror", lambda error: made.complaints.append(str(error)))
    page.on(
        "console",
        lambda message: (
            made.complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.goto(f"{gateway}/")
    yield made
    context.close()
    assert made.foreign == []
    unexpected = [
        words for words in made.complaints if not made.expected or made.expected not in words
    ]
    assert unexpected == []
