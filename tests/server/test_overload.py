"""More requests than the server can answer: refused soon, in order of priority, and then forgotten.

The load is bounded: a burst of requests, each sent once.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http
from tritonclient.utils import InferenceServerException

from assembly import install
from detection_client import DetectionClient, DetectionClientError
from local_server import TritonServer
from photos import jpeg
from tests.server.conftest import on_any_ports

CUP = jpeg("coffee")
BURST = 256  # more than a machine with many more cores answers within the queue's timeout
REFUSALS = ("Exceeds maximum queue size", "Request timeout expired")


@pytest.fixture(scope="module")
def grpc_client(server: TritonServer) -> Iterator[triton_grpc.InferenceServerClient]:
    with triton_grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        yield client


def image_of(module: object) -> list[object]:
    tensor = module.InferInput("IMAGE", [1, 1], "BYTES")  # type: ignore[attr-defined]
    tensor.set_data_from_numpy(np.array([[CUP]], np.object_))
    return [tensor]


def refusal(error: InferenceServerException) -> str:
    """``"refused: STATUS"`` for the refusals of a full queue, or the error as it is."""
    told = any(text in str(error) for text in REFUSALS)
    return f"refused: {error.status()}" if told else str(error)


def at_once(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_burst_is_answered_or_refused(
    server: TritonServer, grpc_client: triton_grpc.InferenceServerClient
) -> None:
    triton, outcomes = server.pid, Counter[str]()

    def ask(_: int) -> None:
        try:
            found = grpc_client.infer("detection", image_of(triton_grpc), client_timeout=30)
        except InferenceServerException as error:
            outcomes[refusal(error)] += 1
        else:
            outcomes["right" if found.as_numpy("num_detections")[0, 0] else "nothing found"] += 1

    at_once(ask, BURST)
    assert outcomes.total() == BURST
    assert set(outcomes) == {"right", "refused: StatusCode.UNAVAILABLE"}
    assert outcomes["right"] >= 16
    assert server.pid == triton
    with DetectionClient(server.grpc_url) as client:
        assert {found.label for found in client.detect(CUP)} >= {"cup"}


def test_openvino_refuses_as_well(repository: Path, tmp_path: Path) -> None:
    """Without a max_batch_size: its queue has limits nevertheless, and nothing is batched."""
    pytest.importorskip("openvino")
    install(repository / "detector/1/model.onnx", tmp_path / "root", engine="openvino")
    config = tmp_path / "root/detector/config.pbtxt"
    text = config.read_text()
    assert "max_queue_size: 64" in text
    config.write_text(text.replace("max_queue_size: 64", "max_queue_size: 2"))
    outcomes = Counter[str]()
    images = triton_grpc.InferInput("images", [1, 300, 300, 3], "UINT8")
    images.set_data_from_numpy(np.zeros((1, 300, 300, 3), np.uint8))
    with (
        on_any_ports(tmp_path / "root") as server,
        triton_grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client,
    ):

        def ask(_: int) -> None:
            try:
                found = client.infer("detector", [images], client_timeout=30)
            except InferenceServerException as error:
                outcomes[refusal(error)] += 1
            else:
                outcomes[str(found.as_numpy("candidates").shape)] += 1

        at_once(ask, 64)
        executed = client.get_inference_statistics("detector", as_json=True)["model_stats"][0]
    assert outcomes.total() == 64
    assert set(outcomes) == {"(1, 300, 6)", "refused: StatusCode.UNAVAILABLE"}
    assert executed["inference_count"] == executed["execution_count"]


def test_refused_over_http(server: TritonServer) -> None:
    statuses = Counter[str]()
    ready = threading.Barrier(BURST)

    def ask(_: int) -> None:
        # Its client is not thread-safe: one each.
        with triton_http.InferenceServerClient(server.http_url.removeprefix("http://")) as client:
            client.is_server_live()  # connects
            ready.wait(60)
            try:
                client.infer("detection", image_of(triton_http))
            except InferenceServerException as error:
                statuses[refusal(error)] += 1
            else:
                statuses["200"] += 1

    at_once(ask, BURST)
    assert set(statuses) == {"200", "refused: 503"}
    assert statuses["200"] >= 16


def test_priority(grpc_client: triton_grpc.InferenceServerClient) -> None:
    """Those of priority 1 go before those of the default, 2, that came at the same time."""
    latencies: dict[int, list[float]] = {1: [], 2: []}

    def ask(number: int) -> None:
        priority = 1 if number % 4 == 0 else 2
        start = time.perf_counter()
        try:
            grpc_client.infer("detection", image_of(triton_grpc), priority=priority)
        except InferenceServerException:
            return
        latencies[priority].append(time.perf_counter() - start)

    at_once(ask, 40)
    assert len(latencies[1]) >= 8
    assert np.median(latencies[1]) < np.median(latencies[2])


def test_a_timeout_of_its_own(grpc_client: triton_grpc.InferenceServerClient) -> None:
    """The parameter `timeout`, in microseconds, counts where it is shorter than the model's."""
    messages = Counter[str]()

    def ask(_: int) -> None:
        try:
            grpc_client.infer("detection", image_of(triton_grpc), timeout=1000)
        except InferenceServerException as error:
            messages[str(error.message())] += 1

    at_once(ask, 24)
    assert sum(count for text, count in messages.items() if "timeout expired" in text) >= 1


def test_deadlines_that_pass_while_requests_are_refused(server: TritonServer) -> None:
    """Triton before 24.12 crashed here where the first step has a max_queue_size."""
    triton, end, kinds = server.pid, time.monotonic() + 5, Counter[str]()

    def ask(number: int) -> None:
        random_source = random.Random(number)
        with DetectionClient(server.grpc_url) as client:
            while time.monotonic() < end:
                try:
                    client.detect(CUP, timeout=random_source.uniform(0.005, 0.4))
                except DetectionClientError as error:
                    kinds[type(error).__name__] += 1

    at_once(ask, 32)
    assert server.pid == triton
    assert kinds["DeadlineExceededError"] >= 1
    assert kinds["ServerUnavailableError"] == 0
    with DetectionClient(server.grpc_url) as client:
        assert {found.label for found in client.detect(CUP)} >= {"cup"}
