"""Around every request: its id, its line in the access log, its counts."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.health import Health
from gateway.metrics import Metrics

__all__ = ["Observed", "write_line"]

_ID = re.compile(rb"[\w.:/+=-]{1,128}", re.ASCII)
ROUTES = frozenset(
    ("/", "/health", "/livez", "/readyz", "/detect", "/batch_detect", "/metrics", "/openapi.json")
)


def write_line(entry: dict[str, Any]) -> None:
    """Write one line of JSON to standard output."""
    sys.stdout.write(json.dumps(entry) + "\n")
    sys.stdout.flush()


class Observed:
    """An application, with request ids, an access log and metrics around it.

    Args:
        app: The application.
        metrics: Where requests are counted.
        write: What takes an entry of the log. Entries tell sizes, and nothing that was sent.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, write: Callable[[dict[str, Any]], None]
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._write = write
        self.health: Health | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given.decode() if _ID.fullmatch(given) else secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id
        start = time.perf_counter()
        status = 499  # unless an answer goes out
        received = sent = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body") or message.get("bytes") or b"")
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status, sent
            kind = message["type"]
            if kind == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            elif kind == "websocket.accept":
                status = 101
            elif kind == "websocket.close" and status == 499:
                status = 403
            sent += len(message.get("body") or message.get("text") or b"")
            await send(message)

        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            seconds = time.perf_counter() - start
            path = scope["path"]
            route = path if path in ROUTES else "/page" if path.startswith("/page/") else "other"
            if scope["type"] == "http":
                self._metrics.observe(route, status, seconds)
            client = scope.get("client")
            self._write(
                {
                    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "request_id": request_id,
                    "method": scope.get("method", "WEBSOCKET"),
                    "path": path[:200],
                    "status": status,
                    "ms": round(seconds * 1000, 2),
                    "client": client[0] if client else "",
                    "key": scope["state"].get("key_id", ""),
                    "bytes_in": received,
                    "bytes_out": sent,
                }
            )
