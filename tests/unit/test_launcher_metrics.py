"""What the launcher tells Prometheus, in every state of a server's health."""

from __future__ import annotations

import time
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from local_server._health import HealthEndpoint
from local_server._metrics import metrics_text
from local_server._state import ServerState


def samples(state: ServerState) -> dict[str, float]:
    """Every sample, by its name and the model that it is of."""
    return {
        sample.name
        + ("/" + sample.labels["model"] if "model" in sample.labels else ""): sample.value
        for family in text_string_to_metric_families(metrics_text(state.snapshot()))
        for sample in family.samples
    }


@pytest.fixture
def state() -> ServerState:
    """Of a server with two models that answer."""
    found = ServerState()
    for model in ("detector", "preprocess"):
        found.answered(model, 0.01)
    found.server_up()
    return found


def test_a_server_that_starts_is_not_healthy() -> None:
    found = samples(ServerState())
    assert (found["launcher_healthy"], found["launcher_triton_up"]) == (0, 0)
    assert not any(name.startswith("launcher_model_") for name in found)


def test_a_healthy_server(state: ServerState) -> None:
    found = samples(state)
    assert (found["launcher_healthy"], found["launcher_triton_up"]) == (1, 1)
    assert found["launcher_model_healthy/detector"] == 1
    assert found["launcher_model_failures_total/detector"] == 0
    answered = found["launcher_model_last_answer_timestamp_seconds/detector"]
    assert 0 <= time.time() - answered < 60


def test_a_model_that_fails_and_is_healed(state: ServerState) -> None:
    state.failing("detector", "the process of an instance has died", "reloading it")
    state.failing("detector", "it does not answer")  # the same failure goes on
    found = samples(state)
    assert (found["launcher_healthy"], found["launcher_triton_up"]) == (0, 1)
    assert found["launcher_model_healthy/detector"] == 0
    assert found["launcher_model_healthy/preprocess"] == 1
    assert found["launcher_model_failures_total/detector"] == 1
    state.reloaded("detector")
    state.answered("detector", 0.01)
    found = samples(state)
    assert (found["launcher_healthy"], found["launcher_model_reloads_total/detector"]) == (1, 1)
    assert found["launcher_model_failures_total/detector"] == 1


def test_a_triton_that_dies_takes_every_model_with_it(state: ServerState) -> None:
    state.server_down("it has died")
    found = samples(state)
    assert (found["launcher_healthy"], found["launcher_triton_up"]) == (0, 0)
    assert found["launcher_model_failures_total/preprocess"] == 1
    for model in ("detector", "preprocess"):
        state.answered(model, 0.01)
    state.server_up(restarted=True)
    assert samples(state)["launcher_triton_restarts_total"] == 1


def test_a_model_that_is_unloaded_is_told_no_more(state: ServerState) -> None:
    state.forget("detector")
    assert not any(name.endswith("/detector") for name in samples(state))


def test_odd_names_are_escaped(state: ServerState) -> None:
    state.answered('a "model"\\\nof two lines', 0.01)
    assert samples(state)['launcher_model_healthy/a "model"\\\nof two lines'] == 1


def test_the_endpoint_answers_with_them(state: ServerState) -> None:
    endpoint = HealthEndpoint("127.0.0.1", 0, state.snapshot)
    try:
        port = endpoint._server.server_address[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert "launcher_healthy 1\n" in answer.read().decode()
    finally:
        endpoint.close()
