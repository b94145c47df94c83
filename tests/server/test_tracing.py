"""One request's trace: the client's context, the gateway's span, and Triton's, joined."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local_server import TritonServer
from photos import jpeg
from tests.server.collector import Collector, Span, collector
from tests.server.conftest import on_any_ports
from tests.server.gateways import gateway

TRACE, PARENT = "5f" * 16, "c1" * 8
STARTS = {"grpc": "a1", "http": "a2", "sampled": "a3"}  # of the trace ids that the tests use
STEPS = ("preprocess", "detector", "postprocess")
HEADERS = {"Content-Type": "image/jpeg"}
_SPANS = 9  # of a request: the gateway's, InferRequest, the ensemble, and two a step
_EXPORT = 5.0  # seconds that the spans may take
_TRIES = 6  # Triton's exporter loses a batch of spans now and then, on a busy machine one in six


@pytest.fixture(scope="module")
def collected() -> Iterator[Collector]:
    with collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(repository: Path, collected: Collector) -> Iterator[TritonServer]:
    """As docs/monitoring.md starts it: Triton traces what has a context, and nothing else."""
    settings = (
        "mode=opentelemetry",
        f"opentelemetry,url={collected.url}",
        "opentelemetry,resource=service.name=detserve-triton",
        "opentelemetry,bsp_schedule_delay=500",
        "level=TIMESTAMPS",
        "rate=0",
    )
    arguments = [f"--trace-config={setting}" for setting in settings]
    with on_any_ports(repository, extra_arguments=arguments) as server:
        yield server


def ask(url: str, **headers: str) -> None:
    answer = httpx.post(
        f"{url}/detect", content=jpeg("coffee"), headers={**HEADERS, **headers}, timeout=30
    )
    assert answer.status_code == 200


def whole_trace(url: str, collected: Collector, start: str, *, unsampled: str = "") -> list[Span]:
    """The spans of a request through a gateway, from the first try of which all have come.

    Args:
        url: Of Triton.
        collected: Where the spans are sent.
        start: Of the trace's id.
        unsampled: The id of a trace that is not sampled, for a request before each.
    """
    for number in range(_TRIES):
        trace = f"{start}{TRACE[len(start) : -2]}{number:02x}"
        with gateway(url, "--otlp-endpoint", collected.url) as running:
            if unsampled:
                ask(running.url, traceparent=f"00-{unsampled}-{PARENT}-00")
            ask(running.url, traceparent=f"00-{trace}-{PARENT}-01")
        # The gateway sends its spans at its end at the latest.
        spans = collected.wait_for(trace, _SPANS, _EXPORT)
        if len(spans) >= _SPANS:
            return spans
    raise AssertionError(f"of {_TRIES} requests not one's spans have all come")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_one_trace_from_the_client_to_every_step(
    traced: TritonServer, collected: Collector, protocol: str
) -> None:
    url = {"grpc": traced.grpc_url, "http": traced.http_url}[protocol]
    spans = whole_trace(url, collected, STARTS[protocol])
    by_id = {span.span_id: span for span in spans}
    by_name = {span.name: span for span in spans}

    def ancestors(span: Span) -> list[str]:
        above = []
        while span.parent_id in by_id:
            span = by_id[span.parent_id]
            above.append(span.name)
        return above

    top = by_name["POST /detect"]
    assert (top.service, top.parent_id) == ("detserve-gateway", PARENT)
    for step in STEPS:
        assert by_name[step].service == "detserve-triton"
        assert ancestors(by_name[step]) == ["detection", "InferRequest", "POST /detect"]
        assert 0 < by_name[step].duration_s <= top.duration_s
    assert sorted(span.name for span in spans if span.name == "compute") == ["compute"] * 3
    assert all(ancestors(span)[0] in STEPS for span in spans if span.name == "compute")


def test_the_gateway_decides_what_is_sampled(
    traced: TritonServer, collected: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton traces whatever has a context, sampled or not: so what is not sampled has none."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")
    unsampled = "ab" * 16
    whole_trace(traced.grpc_url, collected, STARTS["sampled"], unsampled=unsampled)
    assert [span for span in collected.spans if span.trace_id == unsampled] == []


def test_requests_without_a_context_are_not_traced(
    traced: TritonServer, collected: Collector
) -> None:
    """Not even the launcher's own: the rate is 0."""
    answered = traced.health()["models"]["detection"]["last_answer"]
    assert answered is not None
    assert {span.trace_id[:2] for span in collected.spans} <= set(STARTS.values())
    assert traced.health()["restarts"] == 0
