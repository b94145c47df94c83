"""The application: its parts, and where each is found."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detection_client import AsyncDetectionClient
from gateway.access import ApiKeys, RateLimit, read_key_hashes
from gateway.cache import Cache
from gateway.capacity import Capacity
from gateway.handlers import Handlers
from gateway.health import Health
from gateway.live import Live
from gateway.metrics import CONTENT_TYPE, Metrics
from gateway.observe import Observed, write_line
from gateway.openapi import make_document
from gateway.problems import Problem
from gateway.served import ServedModel
from gateway.service import Detector
from gateway.settings import Settings
from gateway.tracing import Tracing

__all__ = ["make_app"]

_PAGE = Path(__file__).parent / "page"
_PAGE_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:;"
        b" connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none';"
        b" frame-ancestors 'none'",
    ),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-cache"),
]


def make_app(
    settings: Settings,
    *,
    client: AsyncDetectionClient | None = None,
    write_log: Callable[[dict[str, Any]], None] = write_line,
) -> Observed:
    """A gateway as an ASGI application; its attribute ``health`` is told of a shutdown.

    Args:
        settings: What the operator has set.
        client: Of the server; made from the settings where it is not given.
        write_log: What takes the entries of the access log.

    Raises:
        ValueError: A setting is no good.
    """
    client = client or AsyncDetectionClient(
        settings.server, model=settings.model, timeout=settings.timeout, retries=0
    )
    capacity = Capacity(settings.max_in_flight, settings.max_wait, settings.max_reading)
    cache = Cache(settings.redis_url, settings.cache_ttl) if settings.redis_url else None
    served = ServedModel(client)
    detector = Detector(client, capacity, served, cache, settings.timeout)
    keys = ApiKeys(read_key_hashes(settings.api_keys))
    rate = RateLimit(settings.rate, settings.redis_url)
    exporter = OTLPSpanExporter(settings.otlp_endpoint) if settings.otlp_endpoint else None
    tracing = Tracing(exporter)
    health = Health(client, detector, cache)
    metrics = Metrics(capacity, cache)
    handlers = Handlers(settings, detector, capacity, keys, rate, tracing)
    live = Live(settings, detector, capacity, keys, rate, metrics)
    document = json.dumps(make_document(settings, keys_required=keys.required))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        following = asyncio.create_task(served.follow())
        try:
            yield
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
            await client.close()
            if cache is not None:
                await cache.close()
            tracing.close()

    async def report_health(_: Request) -> Response:
        status, report = await health.report()
        headers = {"Retry-After": "5"} if status == 503 else None
        return Response(json.dumps(report), status, headers, media_type="application/json")

    async def alive(_: Request) -> Response:
        return Response('{"status": "ok"}', media_type="application/json")

    async def ready(_: Request) -> Response:
        if health.draining:
            raise Problem(503, "the gateway is shutting down", retry_after=5)
        return Response('{"status": "ok"}', media_type="application/json")

    async def show_metrics(_: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def show_document(_: Request) -> Response:
        return Response(document, media_type="application/json")

    async def index(_: Request) -> Response:
        return FileResponse(_PAGE / "index.html")

    routes = [
        Route("/detect", handlers.detect, methods=["POST"]),
        Route("/batch_detect", handlers.batch_detect, methods=["POST"]),
        WebSocketRoute("/live", live.serve),
        Route("/health", report_health),
        Route("/livez", alive),
        Route("/readyz", ready),
        Route("/metrics", show_metrics),
        Route("/openapi.json", show_document),
        Mount("/page", _with_page_headers(StaticFiles(directory=_PAGE))),
        Route("/", _with_page_headers(Route("/", index))),
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={
            Problem: _on_problem,
            HTTPException: _on_http_exception,
            Exception: _on_bug,
        },
    )
    app.router.redirect_slashes = False
    observed = Observed(app, metrics, write_log)
    observed.health = health
    return observed


def _with_page_headers(app: ASGIApp) -> ASGIApp:
    class PageHeaders:
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def send_with_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message.get("headers", ()), *_PAGE_HEADERS]
                await send(message)

            await app(scope, receive, send_with_headers)

    return PageHeaders()


async def _on_problem(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return problem.response()


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details = {
        404: f"there is nothing at {request.url.path[:200]}: see /openapi.json",
        405: f"{request.method[:20]} is not for {request.url.path[:200]}: see /openapi.json",
    }
    detail = details.get(error.status_code, error.detail)
    return Problem(error.status_code, detail, headers=dict(error.headers or {})).response()


async def _on_bug(_: Request, _error: Exception) -> Response:
    return Problem(500, "the gateway failed on its own; its log tells why").response()
