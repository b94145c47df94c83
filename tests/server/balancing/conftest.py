"""Two real Tritons behind a real nginx; without nginx these tests are skipped."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balancing.measure import balancer
from balancing.nginx import Nginx
from balancing.servers import Launcher, launchers

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is in this folder where there is no nginx."""
    if shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="no nginx on PATH"))


@pytest.fixture(scope="package")
def servers(repository: Path) -> Iterator[list[Launcher]]:
    with launchers(2, repository) as running:
        yield running


@pytest.fixture
def both(servers: list[Launcher]) -> list[Launcher]:
    """The servers, both of them up and healthy."""
    for server in servers:
        server.wait_until_healthy()
    return servers


@pytest.fixture
def nginx(both: list[Launcher]) -> Iterator[Nginx]:
    with balancer(both) as running:
        yield running


def wait_until(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    """Wait until something is so; fail if that does not come."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
