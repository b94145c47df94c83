"""What dies or hangs comes back, and the health endpoint tells the truth meanwhile."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from local_server import TritonServer
from local_server._probe import png
from tests.server.conftest import on_any_ports

RECOVERY = 10.0  # seconds, the promise
USERS = 4

SLEEPER = """
import pathlib, time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.folder = pathlib.Path(args["model_repository"]).parent.parent

    def execute(self, requests):
        while (self.folder / "hang").exists():
            time.sleep(0.1)
        while (self.folder / "compute").exists():
            pass
        if (self.folder / "fail").exists():
            raise RuntimeError("told to fail")
        tensors = [pb_utils.get_input_tensor_by_name(r, "X").as_numpy() for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("Y", t)]) for t in tensors]
"""
SLEEPER_CONFIG = """
name: "sleeper"
backend: "python"
max_batch_size: 4
input [ { name: "X" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "Y" data_type: TYPE_FP32 dims: [ 2 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""


@dataclass
class Request:
    """One request of the load: when it was sent, when it was answered, what went wrong."""

    sent: float
    answered: float
    error: str | None


class Load:
    """A light load of detections from several users, until `stop`."""

    def __init__(self, server: TritonServer) -> None:
        self._address = server.grpc_url.removeprefix("grpc://")
        self._ending = threading.Event()
        self.requests: list[Request] = []
        self._users = [threading.Thread(target=self._use) for _ in range(USERS)]
        for user in self._users:
            user.start()

    def stop(self) -> None:
        self._ending.set()
        for user in self._users:
            user.join()

    def lost(self) -> list[Request]:
        return [request for request in self.requests if request.error is not None]

    def _use(self) -> None:
        # gRPC's own waiting before it connects again would look like an outage of ours.
        wait = [(f"grpc.{name}_reconnect_backoff_ms", 100) for name in ("initial", "min", "max")]
        with triton_grpc.InferenceServerClient(self._address, channel_args=wait) as client:
            while not self._ending.is_set():
                tensor = triton_grpc.InferInput("IMAGE", [1, 1], "BYTES")
                tensor.set_data_from_numpy(np.array([[png(0x336699, 64)]], np.object_))
                sent, error = time.monotonic(), None
                try:
                    client.infer("detection", [tensor], client_timeout=30)
                except InferenceServerException as problem:
                    error = f"{problem.status()}: {problem.message()}"
                self.requests.append(Request(sent, time.monotonic(), error))
                time.sleep(0.05)


def health(server: TritonServer) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(server.health_url, timeout=10) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def wait_for(what: Callable[[], bool], timeout: float) -> float:
    """Wait until something is so; returns how long it took, in seconds."""
    began = time.monotonic()
    while not what():
        if time.monotonic() - began > timeout:
            pytest.fail(f"not so within {timeout} s")
        time.sleep(0.02)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def victim(repository: Path) -> Iterator[TritonServer]:
    """A server to be hurt."""
    with on_any_ports(repository) as running:
        yield running


@pytest.fixture
def load(victim: TritonServer) -> Iterator[Load]:
    wait_for(lambda: health(victim)[0] == 200, RECOVERY)
    running = Load(victim)
    wait_for(lambda: len(running.requests) > 2 * USERS, 10)
    yield running
    running.stop()


@dataclass
class Outcome:
    """What came of hurting a server.

    Attributes:
        meanwhile: What the health endpoint answered while it was hurt.
        healthy_after: Seconds until the health endpoint said that all is well.
        answering_after: Seconds until, besides, the last request that failed had been answered.
        lost: The requests that failed.
    """

    meanwhile: dict[str, Any]
    healthy_after: float
    answering_after: float
    lost: list[Request]

    def in_flight(self) -> int:
        """How many requests may have been in flight in a process that died.

        Each user has one at a time, and Triton takes at least a second to give one up, so this is
        one for each user if the recovery takes less than that, as it does on an idle machine.
        """
        return USERS * math.ceil(self.healthy_after)


def hurt(server: TritonServer, load: Load, pids: list[int], with_signal: signal.Signals) -> Outcome:
    """Send processes a signal and wait for the recovery."""
    hit = time.monotonic()
    for pid in pids:
        os.kill(pid, with_signal)
    wait_for(lambda: health(server)[0] == 503, 3)
    meanwhile = health(server)[1]
    wait_for(lambda: health(server)[0] == 200, RECOVERY)
    healthy = time.monotonic()
    settled = healthy + 0.5  # for clients to connect again
    # Requests sent from then on are all answered.
    wait_for(lambda: sum(request.sent > settled for request in load.requests) > 5 * USERS, 30)
    load.stop()
    lost = load.lost()
    assert [request for request in lost if request.sent > settled] == []
    answering = max([healthy, *(request.answered for request in lost)])
    outcome = Outcome(meanwhile, healthy - hit, answering - hit, lost)
    print(
        f"healthy after {outcome.healthy_after:.2f} s, answering after "
        f"{outcome.answering_after:.2f} s, lost {len(lost)} of {len(load.requests)}"
    )
    return outcome


@pytest.mark.parametrize("model", ["preprocess", "detector", "postprocess"])
def test_killed_instance(victim: TritonServer, load: Load, model: str) -> None:
    before = victim.health()["models"][model]["reloads"]
    triton = victim.pid
    pid = next(pid for pid, name in victim.stub_pids().items() if name == model)
    outcome = hurt(victim, load, [pid], signal.SIGKILL)
    assert outcome.answering_after < RECOVERY
    assert len(outcome.lost) <= outcome.in_flight(), outcome.lost
    if outcome.meanwhile["status"] == "failing":  # it may have been over by then
        assert str(pid) in outcome.meanwhile["models"][model]["problem"]
        assert outcome.meanwhile["models"][model]["action"] == "reloading it"
    assert victim.pid == triton
    assert victim.health()["models"][model]["reloads"] == before + 1


def test_all_instances_killed(victim: TritonServer, load: Load) -> None:
    pids = list(victim.stub_pids())
    outcome = hurt(victim, load, pids, signal.SIGKILL)
    assert outcome.answering_after < RECOVERY
    assert len(outcome.lost) <= outcome.in_flight() + USERS, outcome.lost


@pytest.mark.parametrize("model", ["preprocess", "postprocess"])
def test_stopped_instance(victim: TritonServer, load: Load, model: str) -> None:
    pid = next(pid for pid, name in victim.stub_pids().items() if name == model)
    outcome = hurt(victim, load, [pid], signal.SIGSTOP)
    assert outcome.answering_after < RECOVERY
    assert len(outcome.lost) <= outcome.in_flight() + USERS, outcome.lost
    wait_for(lambda: pid not in victim.stub_pids(), 20)


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGSTOP])
def test_triton_itself(victim: TritonServer, load: Load, with_signal: signal.Signals) -> None:
    triton, urls = victim.pid, (victim.grpc_url, victim.http_url)
    restarts = victim.health()["restarts"]
    outcome = hurt(victim, load, [triton], with_signal)
    assert outcome.answering_after < RECOVERY
    assert victim.pid != triton
    assert (victim.grpc_url, victim.http_url) == urls
    assert victim.health()["restarts"] == restarts + 1


def test_no_instance_of_before_is_left(victim: TritonServer) -> None:
    """Triton keeps those of a model that died with a request in flight; the supervisor does not."""
    wait_for(lambda: health(victim)[0] == 200, RECOVERY)
    wait_for(lambda: sorted(victim.stub_pids().values()) == instances(victim), 30)


def instances(server: TritonServer) -> list[str]:
    """The model of each instance there should be."""
    found = []
    for model in ("preprocess", "detector", "postprocess"):
        with urllib.request.urlopen(f"{server.http_url}/v2/models/{model}/config") as response:
            groups = json.loads(response.read())["instance_group"]
        found += [model] * sum(group["count"] for group in groups)
    return sorted(found)


@pytest.fixture
def sleeper(tmp_path: Path) -> Path:
    """A repository with a model that hangs or fails while a file of that name is there."""
    folder = tmp_path / "models" / "sleeper" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(SLEEPER)
    (folder.parent / "config.pbtxt").write_text(SLEEPER_CONFIG)
    return tmp_path


def test_hanging_model(sleeper: Path) -> None:
    with on_any_ports(sleeper / "models", check_interval=0.2) as server:
        old = set(server.stub_pids())
        (sleeper / "hang").touch()
        wait_for(lambda: health(server)[0] == 503, 10)
        (sleeper / "hang").unlink()
        wait_for(lambda: health(server)[0] == 200, RECOVERY)
        # The model would have gone on by itself; it was replaced because it seemed not to.
        assert old.isdisjoint(server.stub_pids())


def test_a_model_that_computes_for_long_is_left_alone(sleeper: Path) -> None:
    with on_any_ports(sleeper / "models", check_interval=0.2) as server:
        old = set(server.stub_pids())
        address = server.grpc_url.removeprefix("grpc://")
        (sleeper / "compute").touch()
        with (
            ThreadPoolExecutor(1) as pool,
            triton_grpc.InferenceServerClient(address) as client,
        ):
            tensor = triton_grpc.InferInput("X", [1, 2], "FP32")
            tensor.set_data_from_numpy(np.zeros((1, 2), np.float32))
            answer = pool.submit(client.infer, "sleeper", [tensor])
            time.sleep(7)  # more than the supervisor waits for an answer of its own
            (sleeper / "compute").unlink()
            assert answer.result(30).as_numpy("Y").shape == (1, 2)
        assert health(server)[0] == 200
        assert set(server.stub_pids()) == old


def test_failing_model(sleeper: Path) -> None:
    lines: list[str] = []
    with on_any_ports(sleeper / "models", check_interval=0.1, show=lines.append) as server:
        (sleeper / "fail").touch()
        wait_for(lambda: health(server)[0] == 503, 10)
        assert "told to fail" in health(server)[1]["models"]["sleeper"]["problem"]
        # Reloading does not help, nor does starting Triton again; both are tried and said.
        wait_for(lambda: any("cannot be reloaded" in line for line in lines), 60)
        assert health(server)[0] == 503
        (sleeper / "fail").unlink()
        wait_for(lambda: health(server)[0] == 200, 60)
        assert health(server)[1]["restarts"] >= 1


def test_a_bad_request_is_no_failure(server: TritonServer) -> None:
    reloads = {name: model["reloads"] for name, model in server.health()["models"].items()}
    address = server.grpc_url.removeprefix("grpc://")
    with triton_grpc.InferenceServerClient(address) as client:
        for _ in range(20):
            tensor = triton_grpc.InferInput("IMAGE", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[b"no image"]], np.object_))
            with pytest.raises(InferenceServerException):
                client.infer("detection", [tensor])
    assert health(server)[0] == 200
    after = {name: model["reloads"] for name, model in server.health()["models"].items()}
    assert after == reloads


def test_health_endpoint(server: TritonServer) -> None:
    status, details = health(server)
    assert status == 200
    assert details["status"] == "ok"
    assert set(details["models"]) == {"detection", "preprocess", "detector", "postprocess"}
    for model in details["models"].values():
        assert model["status"] == "ok"
        assert 0 < model["latency_ms"] < 10_000
    base = server.health_url.removesuffix("/health")
    for path in ("/live", "/ready", "/v2/health/ready", "/health?x=1"):
        with urllib.request.urlopen(base + path, timeout=5) as response:
            assert response.status == 200
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(base + "/nothing", timeout=5)
    with error.value:
        assert error.value.code == 404


def test_probes_do_not_come_from_the_cache(cached_server: TritonServer) -> None:
    def hits() -> int:
        url = f"{cached_server.http_url}/v2/models/detection/stats"
        with urllib.request.urlopen(url, timeout=5) as response:
            statistics = json.loads(response.read())["model_stats"][0]["inference_stats"]
        return int(statistics["cache_hit"]["count"])

    before, asked = hits(), cached_server.health()["models"]["detection"]["last_answer"]
    answers = {asked}

    def several() -> bool:
        answers.add(cached_server.health()["models"]["detection"]["last_answer"])
        return len(answers) > 3

    wait_for(several, 30)
    assert hits() == before


def test_clients_cannot_unload_models(server: TritonServer) -> None:
    url = f"{server.http_url}/v2/repository/models/detection/unload"
    request = urllib.request.Request(url, b"{}", method="POST")
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=5)
    with error.value:
        assert error.value.code == 403
    address = server.grpc_url.removeprefix("grpc://")
    with (
        triton_grpc.InferenceServerClient(address) as client,
        pytest.raises(InferenceServerException, match="restricted"),
    ):
        client.unload_model("detection")


def test_an_operator_may_unload_models(sleeper: Path) -> None:
    with on_any_ports(sleeper / "models", check_interval=0.2, allow_model_control=True) as server:
        address = server.grpc_url.removeprefix("grpc://")
        with triton_grpc.InferenceServerClient(address) as client:
            client.unload_model("sleeper")
            wait_for(lambda: "sleeper" not in health(server)[1]["models"], 20)
            assert not client.is_model_ready("sleeper")
            time.sleep(3)
            assert not client.is_model_ready("sleeper"), "brought back against the operator's will"
            client.load_model("sleeper")
            wait_for(lambda: "sleeper" in health(server)[1]["models"], 20)
            assert health(server)[0] == 200
