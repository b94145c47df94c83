"""The status page's arithmetic, and what it says of endpoints that are not as they should be."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from rich.console import Console

import status
from status_page.latency import histogram_quantile, of_buckets, of_summaries
from status_page.page import HEALTHY, UNHEALTHY, UNREACHABLE, Status, show
from status_page.scrape import Scrape, UnreachableError, scrape
from status_page.summary import Two, gateway_of, server_of, stages_of

TRITON = """\
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="detector",version="1"} 100
# TYPE nv_inference_request_failure counter
nv_inference_request_failure{model="detector",reason="REJECTED",version="1"} 3
nv_inference_request_failure{model="detector",reason="OTHER",version="1"} 2
nv_inference_request_failure{model="detector",reason="CANCELED",version="1"} 7
# TYPE nv_inference_count counter
nv_inference_count{model="detector",version="1"} 400
# TYPE nv_inference_exec_count counter
nv_inference_exec_count{model="detector",version="1"} 100
# TYPE nv_inference_request_duration_us counter
nv_inference_request_duration_us{model="detector",version="1"} 2000000
# TYPE nv_inference_queue_duration_us counter
nv_inference_queue_duration_us{model="detector",version="1"} 500000
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="detector",version="1"} 5
# TYPE nv_inference_request_summary_us summary
nv_inference_request_summary_us{model="detector",version="1",quantile="0.5"} 20000
nv_inference_request_summary_us{model="detector",version="1",quantile="0.9"} 30000
nv_inference_request_summary_us{model="detector",version="1",quantile="0.99"} 40000
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.25
# TYPE nv_cpu_memory_total_bytes gauge
nv_cpu_memory_total_bytes 17179869184
# TYPE nv_cpu_memory_used_bytes gauge
nv_cpu_memory_used_bytes 4294967296
"""
GPU = """\
# TYPE nv_gpu_utilization gauge
nv_gpu_utilization{gpu_uuid="GPU-7"} 0.5
# TYPE nv_gpu_memory_total_bytes gauge
nv_gpu_memory_total_bytes{gpu_uuid="GPU-7"} 85899345920
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-7"} 8589934592
"""
LAUNCHER = """\
# TYPE launcher_healthy gauge
launcher_healthy 1
# TYPE launcher_triton_restarts_total counter
launcher_triton_restarts_total 2
# TYPE launcher_model_healthy gauge
launcher_model_healthy{model="detector"} 1
# TYPE launcher_model_reloads_total counter
launcher_model_reloads_total{model="detector"} 3
# TYPE launcher_shm_used_bytes gauge
launcher_shm_used_bytes 1048576
# TYPE launcher_shm_size_bytes gauge
launcher_shm_size_bytes 67108864
"""
FAILING = LAUNCHER.replace("launcher_healthy 1", "launcher_healthy 0").replace(
    '"detector"} 1', '"detector"} 0'
)


@contextmanager
def endpoints(pages: Mapping[str, str]) -> Iterator[str]:
    """A stand-in for servers: answers paths with texts, and everything else with 503."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = pages.get(self.path)
            self.send_response(503 if text is None else 200)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """The tests do not look at it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def scraped(text: str, moment: float = 0.0) -> Scrape:
    with endpoints({"/metrics": text}) as address:
        return Scrape(moment, scrape(f"http://{address}/metrics").samples)


class TestQuantiles:
    @pytest.mark.parametrize(
        ("buckets", "quantile", "expected"),
        [
            ({}, 0.5, None),
            ({0.1: 0, math.inf: 0}, 0.5, None),
            ({0.1: 50, 0.2: 100, math.inf: 100}, 0.5, 0.1),
            ({0.1: 50, 0.2: 100, math.inf: 100}, 0.25, 0.05),
            ({0.1: 50, 0.2: 100, math.inf: 100}, 0.9, 0.18),
            ({0.1: 50, 0.2: 60, math.inf: 100}, 0.99, 0.2),  # above the greatest finite bound
            ({0.1: 0, 0.2: 0, 0.4: 8, math.inf: 8}, 0.5, 0.3),
        ],
    )
    def test_of_a_histogram(
        self, buckets: dict[float, float], quantile: float, expected: float | None
    ) -> None:
        assert histogram_quantile(quantile, buckets) == (expected and pytest.approx(expected))

    def test_of_buckets_are_milliseconds_and_tell_their_source(self) -> None:
        latency = of_buckets({0.1: 50, 0.2: 100, math.inf: 100}, "a histogram")
        assert latency is not None
        assert latency.p50 == pytest.approx(100)
        assert latency.source == "a histogram"
        assert of_buckets({}, "a histogram") is None

    def test_of_summaries_are_the_slowest_servers(self) -> None:
        quick = {"0.5": 1000.0, "0.9": 2000.0, "0.99": 9000.0}
        slow = {"0.5": 4000.0, "0.9": 5000.0, "0.99": 6000.0}
        idle = dict.fromkeys(quick, math.nan)
        latency = of_summaries([quick, slow, idle])
        assert latency is not None
        assert (latency.p50, latency.p90, latency.p99) == (4, 5, 9)
        assert of_summaries([idle, {}]) is None


class TestStages:
    def test_two_looks_give_rates_and_means(self) -> None:
        before = scraped(
            TRITON.replace('"detector",version="1"} 100', '"detector",version="1"} 80')
        )
        (stage,) = stages_of([Two(before, scraped(TRITON, moment=4.0))])
        assert (stage.answered, stage.failed, stage.rejected, stage.waiting) == (100, 5, 3, 5)
        assert stage.requests_per_s == 5
        assert stage.images_per_s == 0
        assert stage.mean_ms == 0
        assert stage.latency is not None
        assert stage.latency.p99 == 40

    def test_a_server_that_has_begun_anew_counts_from_nothing(self) -> None:
        before = scraped(TRITON.replace("} 100", "} 5000"))
        (stage,) = stages_of([Two(before, scraped(TRITON, moment=2.0))])
        assert stage.requests_per_s == 50

    def test_servers_are_summed_up(self) -> None:
        nothing = Scrape()
        now = scraped(TRITON, moment=2.0)
        (stage,) = stages_of([Two(nothing, now), Two(nothing, now)])
        assert (stage.answered, stage.waiting, stage.requests_per_s) == (200, 10, 100)
        assert (stage.mean_ms, stage.queue_ms, stage.batch) == (20, 5, 4)

    def test_nothing_asked_has_no_mean(self) -> None:
        now = scraped(TRITON)
        (stage,) = stages_of([Two(now, now)])
        assert (stage.requests_per_s, stage.mean_ms, stage.batch) == (0, None, None)


def test_a_server_with_a_gpu_and_a_launcher() -> None:
    server = server_of("a:8002", scraped(TRITON + GPU), scraped(LAUNCHER))
    assert (server.healthy, server.restarts, server.reloads) == (True, 2, 3)
    assert (server.cpu, server.memory_total, server.shm_used) == (0.25, 2**34, 2**20)
    assert [(gpu.uuid, gpu.utilization) for gpu in server.gpus] == [("GPU-7", 0.5)]
    page = Console(width=160)
    with page.capture() as text:
        page.print(show(Status("now", 2.0, [server], [], [], [])))
    assert "50%  8.0/80.0 GiB" in text.get()


def test_a_server_without_a_launcher_is_not_called_healthy() -> None:
    server = server_of("a:8002", scraped(TRITON), None)
    assert (server.healthy, server.gpus) == (None, ())


def test_what_a_gateway_sheds_is_no_error() -> None:
    text = """\
# TYPE gateway_requests_total counter
gateway_requests_total{route="/detect",status="200"} 90
gateway_requests_total{route="/detect",status="503"} 6
gateway_requests_total{route="/detect",status="400"} 4
gateway_requests_total{route="/health",status="503"} 50
# TYPE gateway_frames_total counter
gateway_frames_total{status="200"} 10
# TYPE gateway_shed_total counter
gateway_shed_total 5
# TYPE gateway_request_seconds histogram
gateway_request_seconds_bucket{le="0.1",route="/detect",status="2xx"} 90
gateway_request_seconds_bucket{le="+Inf",route="/detect",status="2xx"} 90
gateway_request_seconds_bucket{le="0.1",route="/detect",status="5xx"} 0
gateway_request_seconds_bucket{le="+Inf",route="/detect",status="5xx"} 6
"""
    now = scraped(text, moment=2.0)
    found = gateway_of("g:8080", Two(Scrape(), now), ready=True)
    assert (found.answered, found.bad, found.errors, found.shed) == (100, 4, 1, 5)
    assert found.requests_per_s == 55
    assert found.latency is not None
    assert found.latency.p50 == pytest.approx(50)
    idle = gateway_of("g:8080", Two(now, now), ready=True)
    assert idle.latency is not None
    assert idle.latency.source == "histogram, since the start"


class TestExitStatus:
    def run(self, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
        code = status.main([*options, "--interval", "0.1", "--json"])
        return code, json.loads(capsys.readouterr().out)

    @pytest.mark.parametrize(
        ("launcher", "code", "word"),
        [(LAUNCHER, HEALTHY, "healthy"), (FAILING, UNHEALTHY, "unhealthy")],
    )
    def test_tells_the_health(
        self, capsys: pytest.CaptureFixture[str], launcher: str, code: int, word: str
    ) -> None:
        with (
            endpoints({"/metrics": TRITON}) as triton,
            endpoints({"/metrics": launcher}) as health,
        ):
            found, document = self.run(capsys, "--triton", triton, "--launcher", health)
        assert (found, document["status"]) == (code, word)
        assert document["servers"][0]["failing"] == ([] if code == HEALTHY else ["detector"])

    def test_a_gateway_that_is_shutting_down_is_unhealthy(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with (
            endpoints({"/metrics": TRITON}) as triton,
            endpoints({"/metrics": "gateway_shed_total 0\n"}) as draining,
        ):
            options = ("--triton", triton, "--without", "launcher", "--gateway", draining)
            found, document = self.run(capsys, *options)
        assert (found, document["gateways"][0]["ready"]) == (UNHEALTHY, False)

    def test_one_of_two_servers_is_gone(self, capsys: pytest.CaptureFixture[str]) -> None:
        with endpoints({"/metrics": TRITON}) as triton:
            options = ("--triton", triton, "127.0.0.1:1", "--without", "launcher", "gateway")
            found, document = self.run(capsys, *options)
        assert (found, len(document["servers"])) == (UNREACHABLE, 1)
        assert "127.0.0.1:1" in document["unreachable"][0]


@pytest.mark.parametrize("text", ["<html>hello</html>", "", "not { metrics\n"])
def test_what_is_no_endpoint_of_metrics_is_told(text: str) -> None:
    with (
        endpoints({"/metrics": text}) as address,
        pytest.raises(UnreachableError, match="does not answer with metrics"),
    ):
        scrape(f"http://{address}/metrics")


def test_an_error_status_is_told() -> None:
    with endpoints({}) as address, pytest.raises(UnreachableError, match="503"):
        scrape(f"http://{address}/metrics")


def test_what_is_no_address_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--triton", "no address", "--without", "launcher", "gateway", "--interval", "0.1"]
    assert status.main(options) == UNREACHABLE
    assert "no answer from http://no address/metrics" in capsys.readouterr().out
