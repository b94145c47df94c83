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
STEPS = ("preprocess", "detector", "postprocess")
HEADERS = {"Content-Type": "image/jpeg"}
_EXPORT = 20.0  # seconds that the spans may take; the exporters send every five or so


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


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_one_trace_from_the_client_to_every_step(
    traced: TritonServer, collected: Collector, protocol: str
) -> None:
    trace = f"{TRACE[:-4]}{protocol.encode().hex()[:4]}"
    url = {"grpc": traced.grpc_url, "http": traced.http_url}[protocol]
    with gateway(url, "--otlp-endpoint", collected.url) as running:
        ask(running.url, traceparent=f"00-{trace}-{PARENT}-01")
    # The gateway sends its spans at its end at the latest.
    spans = collected.wait_for(lambda span: span.trace_id == trace, 9, _EXPORT)
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
    unsampled, sampled = "ab" * 16, "ac" * 16
    with gateway(traced.grpc_url, "--otlp-endpoint", collected.url) as running:
        ask(running.url, traceparent=f"00-{unsampled}-{PARENT}-00")
        ask(running.url, traceparent=f"00-{sampled}-{PARENT}-01")
    assert len(collected.wait_for(lambda span: span.trace_id == sampled, 9, _EXPORT)) == 9
    assert [span for span in collected.spans if span.trace_id == unsampled] == []


def test_requests_without_a_context_are_not_traced(
    traced: TritonServer, collected: Collector
) -> None:
    """Not even the launcher's own: the rate is 0."""
    answered = traced.health()["models"]["detection"]["last_answer"]
    assert answered is not None
    assert {span.trace_id[:-4] for span in collected.spans} <= {TRACE[:-4], "ac" * 14}
    assert traced.health()["restarts"] == 0
