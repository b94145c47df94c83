"""A stand-in for an OpenTelemetry collector: takes spans over OTLP/HTTP, as protobuf or JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

__all__ = ["Collector", "Span", "collector"]


@dataclass(frozen=True)
class Span:
    """What the tests look at in a span; ids are in lower-case hex, "" for no parent."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    duration_s: float


@dataclass
class Collector:
    """Where spans are sent, and those that have come.

    Attributes:
        url: The endpoint.
        spans: In the order of their arrival.
    """

    url: str
    spans: list[Span] = field(default_factory=list)

    def wait_for(self, trace_id: str, count: int, seconds: float) -> list[Span]:
        """The spans of a trace, as soon as there are enough of them, or those that came."""
        deadline = time.monotonic() + seconds
        while True:
            found = [span for span in list(self.spans) if span.trace_id == trace_id]
            if len(found) >= count or time.monotonic() > deadline:
                return found
            time.sleep(0.05)


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector on any free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            as_json = self.headers["Content-Type"].startswith("application/json")
            running.spans.extend(_of_json(body) if as_json else _of_protobuf(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """The tests do not look at it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    running = Collector(f"http://127.0.0.1:{server.server_port}/v1/traces")
    thread = Thread(target=server.serve_forever, args=(0.1,))
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _of_json(body: bytes) -> Iterator[Span]:
    for resource in json.loads(body)["resourceSpans"]:
        attributes = {
            item["key"]: item["value"].get("stringValue", "")
            for item in resource["resource"]["attributes"]
        }
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                yield Span(
                    attributes["service.name"],
                    span["name"],
                    span["traceId"].lower(),
                    span["spanId"].lower(),
                    span.get("parentSpanId", "").lower(),
                    (int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])) / 1e9,
                )


def _of_protobuf(body: bytes) -> Iterator[Span]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        attributes = {item.key: item.value.string_value for item in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    attributes["service.name"],
                    span.name,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
                )
