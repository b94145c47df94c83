"""The examples of the README and of docs/, run as a reader runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_server import TritonServer
from photos import jpeg
from tests.server.gateways import gateway

ROOT = Path(__file__).resolve().parents[2]


def blocks(language: str, *files: str) -> list[str]:
    """The code blocks of some files."""
    texts = [(ROOT / name).read_text() for name in files]
    return [
        code for text in texts for code in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photo.jpg").write_bytes(jpeg("chelsea"))
    (tmp_path / "model_repository").symlink_to(ROOT / "model_repository")
    return tmp_path


def run(arguments: list[str], folder: Path) -> str:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "clients")])
    ran = subprocess.run(
        arguments,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("code", blocks("python", "README.md", "docs/client.md"))
def test_python(server: TritonServer, folder: Path, code: str) -> None:
    if "to_supervision" in code:
        pytest.importorskip("supervision")
    here = server.grpc_url.removeprefix("grpc://")
    assert "127.0.0.1:8001" in code or "LocalClient" in code
    assert run([sys.executable, "-c", code.replace("127.0.0.1:8001", here)], folder).strip()


@pytest.fixture(scope="module")
def gateway_address(server: TritonServer) -> Iterator[str]:
    with gateway(server.grpc_url) as running:
        yield running.url.removeprefix("http://")


CURL = [code for code in blocks("bash", "README.md", "docs/gateway.md") if "curl" in code]


@pytest.mark.parametrize("code", [code for code in CURL if "127.0.0.1:8080" in code])
def test_curl_to_the_gateway(gateway_address: str, folder: Path, code: str) -> None:
    code = code.replace("127.0.0.1:8080", gateway_address)
    assert '"label": "cat"' in run(["bash", "-ec", code], folder)
