"""The camera mode: frames over a WebSocket, each answered in order.

The client sends its options as a JSON text message first, and again whenever they change; then
one encoded frame a binary message. Every frame is answered by a text message of JSON with its
number and what /detect would say. With a few frames under way no more is read, so that a sender
faster than the detector finds its socket full, and drops frames rather than fall behind.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.websockets import WebSocket, WebSocketDisconnect

from gateway.access import ApiKeys, RateLimit
from gateway.capacity import Capacity
from gateway.handlers import answer_members
from gateway.metrics import Metrics
from gateway.options import RequestOptions
from gateway.problems import Problem
from gateway.service import Detector
from gateway.settings import Settings

__all__ = ["Live"]

_POLICY, _INVALID, _BUSY = 1008, 1007, 1013


class Live:
    """Serves cameras."""

    def __init__(
        self,
        settings: Settings,
        detector: Detector,
        capacity: Capacity,
        keys: ApiKeys,
        rate: RateLimit,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._detector = detector
        self._capacity = capacity
        self._keys = keys
        self._rate = rate
        self._metrics = metrics
        self._origins = {origin.strip() for origin in settings.live_origins.split(",")} - {""}
        self._connections = 0

    async def serve(self, socket: WebSocket) -> None:
        """One camera, from its handshake to its end."""
        if not self._origin_allowed(socket):
            await socket.close(_POLICY, "this origin may not use /live")
            return
        if self._connections >= self._settings.live_connections:
            await socket.accept()
            await socket.close(_BUSY, "too many cameras: try again later")
            return
        self._connections += 1
        try:
            await socket.accept()
            await _Camera(self, socket).run()
        except WebSocketDisconnect:
            pass
        finally:
            self._connections -= 1

    def _origin_allowed(self, socket: WebSocket) -> bool:
        origin = socket.headers.get("origin")
        if origin is None or origin in self._origins:  # None: no browser
            return True
        return urlsplit(origin).netloc == socket.headers.get("host")

    def who(self, socket: WebSocket, key: str) -> str:
        """Who asks, by the key of the options or of the handshake.

        Raises:
            Problem: 401, the key is not accepted.
        """
        return self._keys.check(socket, key)

    async def frame(
        self, number: int, data: bytes, options: RequestOptions, client: str, request_id: str
    ) -> str:
        """The answer for one frame."""
        start = time.perf_counter()
        answer: dict[str, Any]
        status = 200
        try:
            await self._rate.check(client)
            if len(data) > self._settings.max_image_bytes:
                most = self._settings.max_image_mb
                raise Problem(413, f"the frame is larger than the {most:g} MB accepted")
            self._capacity.check()
            headers = {"x-request-id": f"{request_id}-{number}"}
            answer = answer_members(await self._detector.detect(data, options, headers))
            answer["timing"]["total_ms"] = round((time.perf_counter() - start) * 1000, 3)
        except Problem as problem:
            answer, status = {"error": problem.to_dict()}, problem.status
        self._metrics.observe_frame(status)
        return json.dumps({"frame": number, **answer})

    @property
    def in_flight(self) -> int:
        """Most frames under way of one camera."""
        return self._settings.live_in_flight


class _Camera:
    """One connection: a reader that starts frames, and a writer that answers them in order."""

    def __init__(self, live: Live, socket: WebSocket) -> None:
        self._live = live
        self._socket = socket
        self._free = asyncio.Semaphore(live.in_flight)
        self._frames: asyncio.Queue[asyncio.Task[str]] = asyncio.Queue()
        self._started: set[asyncio.Task[str]] = set()

    async def run(self) -> None:
        """Until the client goes."""
        reader = asyncio.ensure_future(self._read())
        writer = asyncio.ensure_future(self._write())
        try:
            await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
            if writer.done():
                writer.result()
        finally:
            tasks: tuple[asyncio.Task[Any], ...] = (reader, writer, *self._started)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self) -> None:
        socket, live = self._socket, self._live
        options, client, number = RequestOptions(), "", 0
        request_id: str = socket.scope["state"]["request_id"]
        while True:
            await self._free.acquire()
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if (data := message.get("bytes")) is not None:
                if not client:
                    await socket.close(_POLICY, "send the options first")
                    return
                frame = asyncio.ensure_future(live.frame(number, data, options, client, request_id))
                number += 1
                self._started.add(frame)
                self._frames.put_nowait(frame)
                continue
            try:
                options, key = _parse_options(message.get("text") or "")
                client = live.who(socket, key)
            except Problem as problem:
                code = _POLICY if problem.status == 401 else _INVALID
                await socket.close(code, problem.detail[:120])
                return
            self._free.release()

    async def _write(self) -> None:
        while True:
            frame = await self._frames.get()
            text = await frame
            self._started.discard(frame)
            await self._socket.send_text(text)
            self._free.release()


def _parse_options(text: str) -> tuple[RequestOptions, str]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Problem(400, "options must be a JSON object")
    key = document.pop("api_key", "")
    if not isinstance(key, str):
        raise Problem(400, "api_key must be a string")
    return RequestOptions.from_json(document), key
