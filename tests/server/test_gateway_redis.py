"""The gateway's result cache in a real Redis, which dies and comes back."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local_server import TritonServer
from photos import PHOTOS, jpeg
from tests.server.gateways import Gateway, gateway

HEADERS = {"Content-Type": "image/jpeg"}


class Redis:
    """A Redis on a port of its own that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = shutil.which("redis-server")
        assert program
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self._process = subprocess.Popen(
            [program, *options, "--dir", str(self._folder)], stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    if not shutil.which("redis-server"):
        pytest.skip("no redis-server on PATH")
    found = Redis(tmp_path)
    found.start()
    try:
        yield found
    finally:
        found.kill()


@pytest.fixture
def cached(server: TritonServer, redis: Redis) -> Iterator[Gateway]:
    with gateway(server.grpc_url, "--redis-url", redis.url, "--max-wait", "30") as running:
        yield running


def detect(running: Gateway, image: bytes, **options: float) -> httpx.Response:
    return httpx.post(f"{running.url}/detect", content=image, headers=HEADERS, params=options)


def test_the_same_question_is_answered_from_the_cache(cached: Gateway) -> None:
    first, second = (detect(cached, jpeg("coffee")).json() for _ in range(2))
    assert (first["cached"], second["cached"]) == (False, True)
    assert second["detections"] == first["detections"]
    assert second["timing"]["inference_ms"] == 0
    other = detect(cached, jpeg("coffee"), score_threshold=0.7).json()
    assert other["cached"] is False
    metrics = httpx.get(f"{cached.url}/metrics").text
    assert "gateway_cache_hits_total 1.0" in metrics
    assert "gateway_cache_misses_total 2.0" in metrics


def test_many_at_once_ask_the_detector_once(server: TritonServer, redis: Redis) -> None:
    async def ask(urls: list[str]) -> list[bool]:
        async with httpx.AsyncClient(timeout=30) as client:
            calls = [
                client.post(f"{url}/detect", content=jpeg("coffee"), headers=HEADERS)
                for url in urls * 10
            ]
            return [answer.json()["cached"] for answer in await asyncio.gather(*calls)]

    options = ("--redis-url", redis.url)
    with gateway(server.grpc_url, *options) as one, gateway(server.grpc_url, *options) as two:
        answers = asyncio.run(ask([one.url, two.url]))
    assert answers.count(False) == 1


async def until_health_is(client: httpx.AsyncClient, status: str) -> None:
    deadline = time.monotonic() + 20
    while (answer := await client.get("/health")).json()["status"] != status:
        assert time.monotonic() < deadline, answer.text
        await asyncio.sleep(0.1)
    assert answer.status_code == 200


def test_no_request_fails_while_redis_is_gone_and_hits_come_back(
    cached: Gateway, redis: Redis
) -> None:
    photos = [jpeg(name) for name in PHOTOS]
    statuses: list[int] = []
    hits: list[bool] = []
    stop = asyncio.Event()

    async def ask(client: httpx.AsyncClient) -> None:
        while not stop.is_set():
            for photo in photos:
                answer = await client.post("/detect", content=photo, headers=HEADERS)
                statuses.append(answer.status_code)
                hits.append(answer.status_code == 200 and answer.json()["cached"])

    async def run() -> None:
        async with httpx.AsyncClient(base_url=cached.url, timeout=30) as client:
            asking = [asyncio.create_task(ask(client)) for _ in range(4)]
            await asyncio.sleep(1)
            assert any(hits)
            redis.kill()
            await until_health_is(client, "degraded")
            await asyncio.to_thread(redis.start)
            await until_health_is(client, "ok")
            await asyncio.sleep(2)  # within a second the cache is in use again
            hits.clear()
            await asyncio.sleep(0.5)
            stop.set()
            await asyncio.gather(*asking)

    asyncio.run(run())
    assert set(statuses) == {200}
    assert sum(hits) > len(hits) / 2
