"""Every query of the dashboard and every rule, against a Prometheus that scrapes real servers."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from local_server import TritonServer
from tests.dashboard import queries
from tests.server.conftest import on_any_ports
from tests.server.gateways import Gateway, gateway
from tests.server.monitored import Prometheus, free_port, monitor, traffic
from tests.server.test_gateway_redis import Redis

RULES = Path(__file__).resolve().parents[2] / "deploy" / "prometheus" / "rules"
QUERIES = dict(queries())
GPU = re.compile(r"nv_gpu_|nv_energy_")
# What has no data while all is well.
ONLY_IN_TROUBLE = {"annotation: Restarts and reloads"}
LITTLE_ROOM = ("--max-in-flight", "1", "--max-wait", "0.01", "--max-reading", "6")


@dataclass
class Scene:
    """What runs."""

    server: TritonServer
    gateway: Gateway
    prometheus: Prometheus


def skip_without(*programs: str) -> None:
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"no {program} on PATH")


def host_port(url: str) -> str:
    return urlsplit(url).netloc


@pytest.fixture(scope="module")
def scene(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    skip_without("prometheus", "prometheus-node-exporter", "redis-server")
    redis = Redis(tmp_path_factory.mktemp("redis"))
    summaries = ("--metrics-config=summary_latencies=true",)
    with ExitStack() as stack:
        server = stack.enter_context(
            on_any_ports(repository, cache_mb=16, extra_arguments=summaries)
        )
        redis.start()
        stack.callback(redis.kill)
        running = stack.enter_context(
            gateway(server.grpc_url, "--redis-url", redis.url, *LITTLE_ROOM)
        )
        stack.enter_context(traffic(server.grpc_url, running))
        prometheus = stack.enter_context(
            monitor(
                "--triton", host_port(server.metrics_url),
                "--launcher", host_port(server.health_url),
                "--gateway", host_port(running.url),
            )
        )  # fmt: skip
        yield Scene(server, running, prometheus)


def test_every_target_is_scraped(scene: Scene) -> None:
    for job in ("triton", "launcher", "gateway", "host", "prometheus"):
        assert scene.prometheus.wait_for(f'up{{job="{job}"}} == 1'), job


@pytest.mark.parametrize("where", QUERIES)
def test_every_query_of_the_dashboard_has_data(scene: Scene, where: str) -> None:
    expression = QUERIES[where]
    if GPU.search(expression) or where in ONLY_IN_TROUBLE:
        scene.prometheus.query(expression)  # it parses
        pytest.skip(
            "no data without a GPU" if GPU.search(expression) else "no data without trouble"
        )
    samples = scene.prometheus.wait_for(expression)
    assert samples, expression
    assert all(sample["value"][1] != "NaN" for sample in samples), samples


def rules(kind: str) -> dict[str, str]:
    groups = [
        group
        for path in RULES.glob("*.yml")
        for group in yaml.safe_load(path.read_text())["groups"]
    ]
    return {rule[kind]: rule["expr"] for group in groups for rule in group["rules"] if kind in rule}


@pytest.mark.parametrize("name", rules("record"))
def test_every_recording_rule_records(scene: Scene, name: str) -> None:
    assert scene.prometheus.wait_for(name), name


@pytest.mark.parametrize("name", rules("alert"))
def test_every_alert_is_about_metrics_that_are_there(scene: Scene, name: str) -> None:
    expression = rules("alert")[name]
    scene.prometheus.query(expression)
    metrics = set(
        re.findall(
            r"\b(?:up|(?:launcher|gateway|node|nv|job|model|instance)[_:][\w:]+)\b(?=[{ \[)]|$)",
            expression,
        )
    )
    assert metrics, expression
    for metric in metrics:
        if not GPU.match(metric):
            assert scene.prometheus.wait_for(metric), metric


DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "monitoring.md").read_text()
DOCUMENTED = re.findall(r"`((?:gateway|nv|launcher)_\w+)`", DOCUMENT)


@pytest.mark.parametrize("metric", sorted(set(DOCUMENTED)))
def test_every_documented_metric_is_there(scene: Scene, metric: str) -> None:
    if GPU.match(metric):
        pytest.skip("no data without a GPU")
    name = f"{metric}_count" if metric == "gateway_request_seconds" else metric
    assert scene.prometheus.wait_for(name), name


def test_prometheus_evaluates_every_rule(scene: Scene) -> None:
    assert scene.prometheus.wait_for("job:gateway_slow_ratio:rate5m")
    groups = scene.prometheus.get("rules")["groups"]
    found = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert found.keys() == rules("record").keys() | rules("alert").keys()
    assert [
        (name, rule.get("lastError")) for name, rule in found.items() if rule["health"] != "ok"
    ] == []


def test_the_launchers_metrics_are_well_formed(server: TritonServer) -> None:
    answer = httpx.get(server.health_url.replace("/health", "/metrics"))
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}

    def samples(name: str, label: str) -> dict[str, float]:
        return {sample.labels[label]: sample.value for sample in families[name].samples}

    models = {"detection", "preprocess", "detector", "postprocess"}
    assert samples("launcher_model_healthy", "model") == dict.fromkeys(models, 1.0)
    assert families["launcher_healthy"].samples[0].value == 1
    assert families["launcher_triton_restarts"].type == "counter"
    assert samples("launcher_processes", "process")["preprocess"] >= 2
    assert samples("launcher_process_anonymous_bytes", "process")["tritonserver"] > 1_000_000
    used, size = (
        families[f"launcher_shm_{what}_bytes"].samples[0].value for what in ("used", "size")
    )
    assert 0 < used < size


def test_a_lost_process_and_a_lost_gateway_are_noticed(repository: Path) -> None:
    """On servers of this test's own, since they are killed."""
    skip_without("prometheus")
    with ExitStack() as stack:
        server = stack.enter_context(on_any_ports(repository))
        lonely = f"127.0.0.1:{free_port()}"
        prometheus = stack.enter_context(
            monitor(
                "--triton", host_port(server.metrics_url),
                "--launcher", host_port(server.health_url),
                "--gateway", lonely,
                "--without", "host",
            )
        )  # fmt: skip
        assert prometheus.wait_for('launcher_model_reloads_total{model="preprocess"} == 0')
        victim = next(pid for pid, model in server.stub_pids().items() if model == "preprocess")
        os.kill(victim, signal.SIGKILL)
        assert prometheus.wait_for('launcher_model_reloads_total{model="preprocess"} == 1')
        assert prometheus.wait_for('launcher_model_failures_total{model="preprocess"} >= 1')
        assert prometheus.wait_for("launcher_healthy == 1")
        pending: list[Any] = prometheus.wait_for(
            f'ALERTS{{alertname="GatewayDown", instance="{lonely}", severity="critical"}}'
        )
        assert pending[0]["metric"]["alertstate"] == "pending"  # it fires after its minute
