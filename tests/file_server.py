"""A file server that misbehaves on purpose."""

from __future__ import annotations

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

__all__ = ["FileServer"]


class FileServer:
    """Serves `files` by path, with ranges and ETags, on a port of its own.

    Attributes:
        files: Path to content; may be changed between requests.
        ranges: Whether it can resume.
        etags: Whether answers name their version.
        drop_after: Bytes after which each answer's connection is cut, from the list's front; None
            for an answer that is whole. When the list is empty, all are.
        answers: Statuses to answer with, from the front, before any file; with a Retry-After of 0.
        stall: Whether to send a first half and then nothing.
        asked: The Range header of every request, in order; None where there was none.
    """

    def __init__(self, **files: bytes) -> None:
        self.files = {f"/{name.replace('__', '/')}": data for name, data in files.items()}
        self.ranges = True
        self.etags = True
        self.drop_after: list[int | None] = []
        self.answers: list[int] = []
        self.stall = False
        self.asked: list[str | None] = []
        self._released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        request.close_connection = True
        if self.answers:
            self._status(request, self.answers.pop(0))
            return
        if request.path == "/moved.onnx":
            request.send_response(302)
            request.send_header("Location", f"{self.url}/model.onnx")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        data = self.files.get(request.path)
        if data is None:
            self._status(request, 404)
            return
        etag = f'"{hashlib.sha256(data).hexdigest()[:12]}"'
        begin = 0
        condition = request.headers.get("If-Range", etag)
        if wanted and self.ranges and condition == etag:
            found = re.fullmatch(r"bytes=(\d+)-", wanted)
            assert found
            begin = int(found[1])
            if begin >= len(data):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(data)}")
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        else:
            request.send_response(200)
        request.send_header("Content-Length", str(len(data) - begin))
        if self.etags:
            request.send_header("ETag", etag)
        request.end_headers()
        body = data[begin:]
        if self.stall:
            request.wfile.write(body[: len(body) // 2])
            request.wfile.flush()
            self._released.wait(30)
            return
        cut = self.drop_after.pop(0) if self.drop_after else None
        request.wfile.write(body if cut is None else body[:cut])

    @staticmethod
    def _status(request: BaseHTTPRequestHandler, status: int) -> None:
        request.send_response(status)
        request.send_header("Retry-After", "0")
        request.send_header("Content-Length", "0")
        request.end_headers()
