"""The health endpoint: what Triton's own does not tell.

Triton's `/v2/health/ready` stays 200 when the process that runs a Python model has died. This one
answers from what the supervisor has seen.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from local_server._metrics import CONTENT_TYPE, metrics_text


class HealthEndpoint:
    """A small HTTP server for health checks.

    `/health` and `/ready` answer 200 when every model answers and 503 otherwise, both with the
    details as JSON; `/live` answers 200 as long as the launcher runs and watches; `/metrics` is
    for Prometheus.

    Args:
        host: Address to bind.
        port: Port to bind.
        snapshot: Gives the details.

    Raises:
        OSError: If the port is taken.
    """

    def __init__(self, host: str, port: int, snapshot: Callable[[], dict[str, Any]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10  # seconds an idle connection may hold a thread

            def do_GET(self) -> None:
                path = self.path.partition("?")[0].rstrip("/")
                if path in ("/health", "/ready", "/v2/health/ready"):
                    details = snapshot()
                    ok = details["status"] == "ok"
                    self._answer(HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE, details)
                elif path in ("/live", "/v2/health/live"):
                    # Nobody heals any more where the supervisor has failed: start it again.
                    ok = snapshot()["supervised"]
                    self._answer(
                        HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE,
                        {"status": "ok" if ok else "failing"},
                    )
                elif path == "/metrics":
                    self._send(HTTPStatus.OK, CONTENT_TYPE, metrics_text(snapshot()).encode())
                else:
                    error = "GET /health, /ready, /live or /metrics"
                    self._answer(HTTPStatus.NOT_FOUND, {"error": error})

            def do_HEAD(self) -> None:
                self.do_GET()

            def _answer(self, status: HTTPStatus, document: dict[str, Any]) -> None:
                body = json.dumps(document, indent=2).encode() + b"\n"
                self._send(status, "application/json", body)

            def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Health checks are not worth a log line."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that hangs up early is no matter."""

        self._server = Server((host, port), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="health", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
