"""Clients that are slow, idle, or gone before their answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import resource
import socket
import struct
import time
from collections.abc import Awaitable

from detection_client import AsyncDetectionClient, DetectionClientError
from photos import jpeg
from robustness.trial import Case, Trial

__all__ = ["CASES"]

IDLE = 1000
SLOW = 20
SLOW_S = 6.0
IDLE_S = 4.0
QUITTERS = 60
# What opens an HTTP/2 connection: its preface and an empty SETTINGS frame.
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
ALLOWED_FILES = 4 * IDLE + 1000

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def _detect_head(length: int) -> bytes:
    return (
        b"POST /detect HTTP/1.1\r\nHost: chaos\r\nContent-Type: image/jpeg\r\n"
        b"Content-Length: %d\r\n\r\n" % length
    )


def _infer_request(photo: bytes) -> bytes:
    """An inference over Triton's HTTP, whose answer has all boxes as text."""
    header = (
        b'{"inputs":[{"name":"IMAGE","shape":[1,1],"datatype":"BYTES",'
        b'"parameters":{"binary_data_size":%d}}]}' % (len(photo) + 4)
    )
    body = header + struct.pack("<I", len(photo)) + photo
    return (
        b"POST /v2/models/detection/infer HTTP/1.1\r\nHost: chaos\r\n"
        b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
        % (len(header), len(body))
    ) + body


def raise_file_limit() -> int:
    """Allow this process, and those it starts, as many open files as it may; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ALLOWED_FILES if hard == resource.RLIM_INFINITY else min(hard, ALLOWED_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


async def _connect(port: int, receive_buffer: int | None = None) -> Streams:
    connection = socket.socket()
    connection.setblocking(False)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    return await asyncio.open_connection(sock=connection)


async def _trickle(port: int, data: bytes, at_once: int) -> None:
    """Send the first bytes, then one a second."""
    with contextlib.suppress(OSError):
        _, writer = await _connect(port)
        writer.write(data[:at_once])
        end = time.monotonic() + SLOW_S
        for byte in data[at_once:]:
            if time.monotonic() > end:
                break
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(1)
        writer.transport.abort()


async def _sip(port: int, request: bytes) -> None:
    """Ask, and take a few bytes of the answer a second."""
    with contextlib.suppress(OSError):
        reader, writer = await _connect(port, receive_buffer=1024)
        writer.write(request)
        end = time.monotonic() + SLOW_S
        while time.monotonic() < end and await reader.read(16):
            await asyncio.sleep(1)
        writer.transport.abort()


def _slow(trial: Trial) -> None:
    ports, photo = trial.service.ports, jpeg("coffee")
    detect, infer = _detect_head(len(photo)) + photo, _infer_request(photo)

    async def all_at_once() -> None:
        slow: list[Awaitable[None]] = []
        for _ in range(SLOW):
            slow += [
                _trickle(ports["gateway"], detect, 0),  # slow in its head
                _trickle(ports["gateway"], detect, 1000),  # and in its body
                _trickle(ports["HTTP"], infer, 0),
                _trickle(ports["HTTP"], infer, 1000),
                _trickle(ports["gRPC"], HTTP2, 0),
                _trickle(ports["gRPC"], HTTP2 + bytes(9), len(HTTP2)),
                _sip(ports["gateway"], detect),
                _sip(ports["HTTP"], infer),
            ]
        await asyncio.gather(*slow)

    trial.now_hit()
    asyncio.run(all_at_once())
    _check_nothing_failed(trial)


def _idle(trial: Trial) -> None:
    async def hold() -> dict[str, int]:
        connected: dict[str, list[Streams]] = {}
        for name, port in trial.service.ports.items():
            connected[name] = []
            for number in range(IDLE):
                try:
                    streams = await _connect(port)
                except OSError:
                    break
                if name == "gRPC":
                    streams[1].write(HTTP2)
                elif number % 2:  # every other one has asked something before
                    streams[1].write(b"GET /health HTTP/1.1\r\nHost: chaos\r\n\r\n")
                connected[name].append(streams)
        trial.now_hit()
        await asyncio.sleep(IDLE_S)
        held = {name: len(all_of_it) for name, all_of_it in connected.items()}
        for all_of_it in connected.values():
            for _, writer in all_of_it:
                writer.transport.abort()
        return held

    started = time.monotonic()
    for name, count in asyncio.run(hold()).items():
        trial.check(f"{count} of {IDLE} idle connections over {name}", count == IDLE)
    trial.check("others were answered meanwhile", trial.answered_since(started) > 0)
    _check_nothing_failed(trial)


def _quit(trial: Trial) -> None:
    ports, photo = trial.service.ports, jpeg("coffee")
    detect, infer = _detect_head(len(photo)) + photo, _infer_request(photo)

    async def leave(port: int, request: bytes, number: int) -> None:
        """Send half a request, or a whole one and wait a little, then reset the connection."""
        with contextlib.suppress(OSError):
            _, writer = await _connect(port)
            writer.write(request[: len(request) // 2] if number % 2 else request)
            await asyncio.sleep(0.005 * (number % 12))
            writer.transport.abort()

    async def cancel(client: AsyncDetectionClient, number: int) -> None:
        with contextlib.suppress(DetectionClientError, TimeoutError):
            await asyncio.wait_for(client.detect(photo), 0.002 * (1 + number % 12))

    async def some() -> None:
        async with AsyncDetectionClient(trial.service.grpc_url, retries=0) as client:
            for number in range(QUITTERS):
                await asyncio.gather(
                    leave(ports["gateway"], detect, number),
                    leave(ports["HTTP"], infer, number),
                    cancel(client, number),
                )
                await asyncio.sleep(0.03)

    trial.now_hit()
    asyncio.run(some())
    _check_nothing_failed(trial)


def _check_nothing_failed(trial: Trial) -> None:
    ended = trial.traffic.between(trial.hit or trial.start, time.monotonic())
    lost = [one for one in ended if one.error and not one.refused]
    trial.check("no request of others was lost", not lost)


CASES = (
    Case("slow-clients", f"{8 * SLOW} clients that send or read a few bytes a second", _slow),
    Case(
        "idle-connections",
        f"{IDLE} idle connections each over gRPC, HTTP and to the gateway",
        functools.partial(_idle),
    ),
    Case("quitting-clients", f"{3 * QUITTERS} clients gone in the midst of their request", _quit),
)
