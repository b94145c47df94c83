"""One real Triton for the session, and checks that no server leaves anything behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local_server import TritonServer

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"


def on_any_ports(repository: Path, **options: Any) -> TritonServer:
    """A server, not started, that takes any free ports."""
    ports = dict.fromkeys(("http_port", "grpc_port", "metrics_port", "health_port"), 0)
    return TritonServer(repository, **{**ports, **options})


@pytest.fixture(scope="session")
def repository() -> Path:
    """The model repository, with a detector in it."""
    detector = REPOSITORY / "detector" / "1"
    if not any((detector / name).exists() for name in ("model.onnx", "model.plan")):
        pytest.skip("no detector: run `make model`")
    return REPOSITORY


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[TritonServer]:
    """A server without a response cache; tests leave it as they found it."""
    with on_any_ports(repository, allow_shared_memory=True) as running:
        yield running


@pytest.fixture(scope="session")
def cached_server(repository: Path) -> Iterator[TritonServer]:
    """A server with a response cache of 64 MB."""
    with on_any_ports(repository, cache_mb=64) as running:
        yield running


def leftovers(launcher: int) -> list[str]:
    """What the servers of a launcher have left: processes, shared memory, temporary folders.

    Args:
        launcher: The process that started the servers.
    """
    prefix = f"detserve-{launcher}-"
    found = [str(path) for path in Path("/dev/shm").glob(f"{prefix}*")]
    found += [str(path) for path in Path("/tmp").glob(f"{prefix}*")]
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                arguments = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if prefix in arguments:
                found.append(f"process {process.name}: {arguments}")
    return found


def wait_until_clean(launcher: int, timeout: float = 20.0) -> None:
    """Wait until the servers of a launcher have left nothing; fail if that does not come."""
    deadline = time.monotonic() + timeout
    while left := leftovers(launcher):
        if time.monotonic() > deadline:
            pytest.fail("left behind:\n" + "\n".join(left))
        time.sleep(0.05)


@pytest.fixture(scope="session", autouse=True)
def nothing_left() -> Iterator[None]:
    """After the last test, with every server stopped, nothing of them is left."""
    yield
    assert leftovers(os.getpid()) == []
