"""Servers that do not answer, are not there, or are something else: real sockets, real time."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest

from detection_client import (
    AsyncDetectionClient,
    DeadlineExceededError,
    DetectionClient,
    ServerError,
    ServerUnavailableError,
    _flows,
)

Call = Callable[..., Any]


@pytest.fixture
def mute_port() -> Iterator[int]:
    """A port that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture(params=["grpc", "http"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["blocking", "asyncio"])
def call(request: pytest.FixtureRequest) -> Call:
    def blocking(url: str, method: str, *arguments: Any, **options: Any) -> Any:
        with DetectionClient(url) as client:
            return getattr(client, method)(*arguments, **options)

    def with_asyncio(url: str, method: str, *arguments: Any, **options: Any) -> Any:
        async def run() -> Any:
            async with AsyncDetectionClient(url) as client:
                return await getattr(client, method)(*arguments, **options)

        return asyncio.run(run())

    return blocking if request.param == "blocking" else with_asyncio


def test_a_mute_server_is_left_at_the_deadline(call: Call, scheme: str, mute_port: int) -> None:
    url = f"{scheme}://127.0.0.1:{mute_port}"
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=f"no answer from {url} within 0.4 s"):
        call(url, "detect", b"image", timeout=0.4)
    assert 0.35 < time.monotonic() - start < 1.4


def test_a_mute_server_is_not_ready(call: Call, scheme: str, mute_port: int) -> None:
    assert call(f"{scheme}://127.0.0.1:{mute_port}", "server_ready", timeout=0.2) is False


def test_a_server_that_trickles(call: Call) -> None:
    """The deadline is the call's, not each read's: bytes that keep coming do not extend it."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def trickle() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not done.wait(0.05):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    thread = threading.Thread(target=trickle)
    thread.start()
    start = time.monotonic()
    try:
        with pytest.raises(DeadlineExceededError):
            call(f"http://127.0.0.1:{listener.getsockname()[1]}", "detect", b"image", timeout=0.5)
        assert time.monotonic() - start < 1.5
    finally:
        done.set()
        thread.join()
        listener.close()


def test_nobody_listens(call: Call, scheme: str, free_port: int) -> None:
    url = f"{scheme}://127.0.0.1:{free_port}"
    start = time.monotonic()
    with pytest.raises(ServerUnavailableError) as caught:
        call(url, "detect", b"image")
    assert str(caught.value) == f"cannot connect to {url}: connection refused"
    assert 0.1 < time.monotonic() - start < 3  # asked again three times, with short pauses
    assert call(url, "server_ready") is False


def test_no_such_host(call: Call, scheme: str) -> None:
    with pytest.raises(ServerUnavailableError, match="cannot connect"):
        call(f"{scheme}://no-such-host.invalid", "detect", b"image")


def test_a_server_of_another_kind(call: Call, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"220 mail.example.org ESMTP\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises((ServerUnavailableError, DeadlineExceededError)):
            call(url, "detect", b"image", timeout=2)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_a_server_that_comes_late_is_found(
    scheme: str, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retries bridge a restart. What comes here is no Triton, so the error becomes another."""
    monkeypatch.setattr(_flows, "LONGEST_PAUSE_S", 0.1)
    came: list[Any] = []

    def come() -> None:
        if scheme == "http":
            came.append(socket.create_server(("127.0.0.1", free_port)))
        else:
            came.append(grpc.server(ThreadPoolExecutor(1)))
            came[0].add_insecure_port(f"127.0.0.1:{free_port}")
            came[0].start()

    timer = threading.Timer(0.3, come)
    timer.start()
    try:
        with (
            DetectionClient(f"{scheme}://127.0.0.1:{free_port}", retries=1000) as client,
            pytest.raises(DeadlineExceededError if scheme == "http" else ServerError),
        ):
            client.detect(b"image", timeout=3)
    finally:
        timer.join()
        came[0].close() if scheme == "http" else came[0].stop(None).wait()


def test_closing_ends_the_calls_under_way(scheme: str, mute_port: int) -> None:
    client = DetectionClient(f"{scheme}://127.0.0.1:{mute_port}")
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            client.detect(b"image", timeout=30)
        except Exception as error:  # noqa: BLE001 - whichever it is
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    start = time.monotonic()
    client.close()
    thread.join()
    assert time.monotonic() - start < 3
    assert len(errors) == 1
