"""Trace context (W3C), from the request on to Triton; spans where there is a collector."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.propagate import extract, inject
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind

__all__ = ["Tracing"]

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_LONGEST_STATE = 512


class Tracing:
    """The spans of this process.

    Args:
        exporter: Where they go; None for nowhere, the context then passes through.
    """

    def __init__(self, exporter: SpanExporter | None) -> None:
        self._provider: TracerProvider | None = None
        if exporter is not None:
            self._provider = TracerProvider(resource=Resource({"service.name": "detserve-gateway"}))
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
            self._tracer = self._provider.get_tracer("gateway")

    @contextmanager
    def span(self, name: str, headers: Mapping[str, str]) -> Iterator[dict[str, str]]:
        """One request's span; gives the headers that pass its context on."""
        carrier = _context_of(headers)
        if self._provider is None:
            yield carrier or {
                "traceparent": f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"
            }
            return
        passed: dict[str, str] = {}
        with self._tracer.start_as_current_span(
            name, context=extract(carrier), kind=SpanKind.SERVER
        ) as span:
            # Triton traces whatever has a context, sampled or not: what is not sampled has none.
            if span.get_span_context().trace_flags.sampled:
                inject(passed)
            yield passed

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()


def _context_of(headers: Mapping[str, str]) -> dict[str, str]:
    parent = headers.get("traceparent", "")
    if not _TRACEPARENT.fullmatch(parent):
        return {}
    state = headers.get("tracestate", "")
    if not state or len(state) > _LONGEST_STATE or not (state.isascii() and state.isprintable()):
        return {"traceparent": parent}
    return {"traceparent": parent, "tracestate": state}
