"""Large images in shared memory: the same answers, nothing left, servers that start anew."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc

from detection_client import (
    AccessDeniedError,
    AsyncDetectionClient,
    DeadlineExceededError,
    DetectionClient,
    InvalidInputError,
)
from detserve.detections import Detections
from local_server import TritonServer
from tests.images import photo
from tests.server.conftest import on_any_ports
from tests.server.test_parity import assert_same

ARRAYS = [
    np.asarray(photo(name).resize(size))
    for name, size in (("coffee", (640, 480)), ("chelsea", (1280, 960)), ("astronaut", (80, 60)))
]


def mapped(server: TritonServer) -> set[str]:
    """The regions that the server knows."""
    with triton_grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        status = client.get_system_shared_memory_status(as_json=True)
    return set(status.get("regions", {}))


def ours() -> list[Path]:
    return list(Path("/dev/shm").glob(f"detserve-client-{os.getpid()}-*"))


@pytest.fixture(params=["grpc", "http"])
def url(server: TritonServer, request: pytest.FixtureRequest) -> str:
    return server.grpc_url if request.param == "grpc" else server.http_url


@pytest.fixture
def expected(server: TritonServer) -> list[Detections]:
    with DetectionClient(server.grpc_url) as client:
        return client.detect_batch(ARRAYS)


@pytest.fixture(autouse=True)
def nothing_left_behind(server: TritonServer) -> Iterator[None]:
    before = mapped(server)
    yield
    assert ours() == []
    # Triton forgets a region when the last request that uses it has ended, given up or not.
    deadline = time.monotonic() + 10
    while mapped(server) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert mapped(server) == before


def test_the_same_answers(server: TritonServer, url: str, expected: list[Detections]) -> None:
    with DetectionClient(url, shared_memory=True) as client:
        for _ in range(2):
            for array, wanted in zip(ARRAYS, expected, strict=True):
                assert_same(client.detect(array), wanted)
        assert len(mapped(server)) == 2  # one of each size, used again; the small one was sent
        assert ours() == []
        batch = client.detect_batch(ARRAYS)
        for found, wanted in zip(batch, expected, strict=True):
            assert_same(found, wanted)


def test_the_same_answers_with_asyncio(url: str, expected: list[Detections]) -> None:
    async def ask() -> list[Detections]:
        async with AsyncDetectionClient(url, shared_memory=True) as client:
            calls = [client.detect(array, score_threshold=0.3) for array in ARRAYS * 8]
            return list(await asyncio.gather(*calls))

    for found, wanted in zip(asyncio.run(ask()), expected * 8, strict=True):
        assert_same(found, wanted)


def test_from_many_threads(server: TritonServer, url: str, expected: list[Detections]) -> None:
    with DetectionClient(url, shared_memory=True) as client, ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(client.detect, ARRAYS * 16), expected * 16, strict=True):
            assert_same(found, wanted)
        assert len(mapped(server)) <= 16


def test_a_bad_image_is_refused_and_its_region_used_again(server: TritonServer, url: str) -> None:
    with DetectionClient(url, shared_memory=True) as client:
        for _ in range(3):
            with pytest.raises(InvalidInputError, match="not a JPEG"):
                client.detect(b"no image" * 100_000)
        assert len(client.detect(ARRAYS[0])) > 0
        assert len(mapped(server)) == 1


def test_requests_given_up_do_no_harm(url: str, expected: list[Detections]) -> None:
    with DetectionClient(url, shared_memory=True, retries=0) as client:
        given_up = 0
        for number in range(40):
            try:
                client.detect(ARRAYS[number % 2], timeout=0.004)
            except DeadlineExceededError:
                given_up += 1
        # On a busy machine the client may wake up to its answer and its deadline at once.
        assert given_up >= 20
        assert_same(client.detect(ARRAYS[0]), expected[0])


def test_cancelled_requests_do_no_harm(server: TritonServer, expected: list[Detections]) -> None:
    async def give_up(client: AsyncDetectionClient, number: int) -> None:
        task = asyncio.create_task(client.detect(ARRAYS[number % 2]))
        await asyncio.sleep(0.001 * (number % 25))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def work() -> Detections:
        async with AsyncDetectionClient(server.grpc_url, shared_memory=True) as client:
            for number in range(100):
                await give_up(client, number)
            return await client.detect(ARRAYS[0])

    assert_same(asyncio.run(work()), expected[0])


def test_a_server_that_is_started_anew(repository: Path, expected: list[Detections]) -> None:
    with (
        on_any_ports(repository, allow_shared_memory=True) as server,
        DetectionClient(server.grpc_url, shared_memory=True, retries=20) as client,
    ):
        assert_same(client.detect(ARRAYS[0]), expected[0])
        os.kill(server.pid, signal.SIGKILL)
        assert_same(client.detect(ARRAYS[0], timeout=60), expected[0])
        assert len(mapped(server)) == 1


def test_a_server_that_forbids_it(repository: Path) -> None:
    with (
        on_any_ports(repository) as server,
        DetectionClient(server.grpc_url, shared_memory=True) as client,
        pytest.raises(AccessDeniedError, match="restricted"),
    ):
        client.detect(ARRAYS[0])


def test_a_client_that_is_killed_leaves_no_memory(server: TritonServer) -> None:
    code = (
        "import os, sys, numpy as np\n"
        "from detection_client import DetectionClient\n"
        f"client = DetectionClient({server.grpc_url!r}, shared_memory=True)\n"
        "client.detect(np.zeros((480, 640, 3), np.uint8))\n"
        "print(os.getpid(), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), str(root / "clients")])
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    assert ran.returncode == -signal.SIGKILL
    pid = int(ran.stdout)
    assert not list(Path("/dev/shm").glob(f"detserve-client-{pid}-*"))
    forget(server, f"detserve-client-{pid}-")


def forget(server: TritonServer, prefix: str) -> None:
    """The server keeps a killed client's mapping until it is told, or ends."""
    with triton_grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        for name in mapped(server):
            if name.startswith(prefix):
                client.unregister_system_shared_memory(name)


@pytest.mark.parametrize("address", ["grpc://gpu-box:8001", "http://10.0.0.1:8000"])
def test_only_for_a_server_on_this_machine(address: str) -> None:
    options: dict[str, Any] = {"shared_memory": True}
    with pytest.raises(InvalidInputError, match="needs a server on this machine"):
        DetectionClient(address, **options)
