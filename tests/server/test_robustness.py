"""What Triton's own quality tests look at beside answers: cancellation, payloads, memory."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tritonclient import grpc as triton_grpc

from detection_client import DetectionClient, ServerUnavailableError
from local_server import TritonServer
from photos import jpeg
from tests.images import odd_images, photo
from tests.server.conftest import on_any_ports

CAT = jpeg("chelsea")


def test_cancelled_requests_leave_the_server_well(server: TritonServer) -> None:
    stubs = set(server.stub_pids())
    tensor = triton_grpc.InferInput("IMAGE", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[CAT]], np.object_))
    answered = threading.Semaphore(0)
    errors: list[str] = []

    def note(result: object, error: object) -> None:
        errors.append(str(error or result))
        answered.release()

    with triton_grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        calls = [client.async_infer("detection", [tensor], note) for _ in range(60)]
        for call in calls[1:]:
            call.cancel()
        for _ in calls:
            assert answered.acquire(timeout=30)
    with DetectionClient(server.grpc_url) as client:
        for _ in range(20):
            assert [found.label for found in client.detect(CAT)] == ["cat"]
    assert any("CANCELLED" in error for error in errors)
    assert set(server.stub_pids()) == stubs


def test_large_payloads(server: TritonServer) -> None:
    stream = io.BytesIO()
    photo("chelsea").resize((3000, 2200)).save(stream, "BMP")  # 19.8 MB of the 20 MiB allowed
    with DetectionClient(server.grpc_url) as client:
        assert [found.label for found in client.detect(stream.getvalue())] == ["cat"]
        array = np.asarray(photo("chelsea").resize((1000, 700)))  # 2.1 MB each
        batch = client.detect_batch([array] * 16)
    assert [[found.label for found in one] for one in batch] == [["cat"]] * 16


def test_shared_memory_does_not_grow(server: TritonServer) -> None:
    images = list(odd_images().values())

    def size() -> int:
        segments = Path("/dev/shm").glob(f"{server.prefix}*")
        return sum(segment.stat().st_size for segment in segments)

    with DetectionClient(server.grpc_url) as client, ThreadPoolExecutor(8) as pool:

        def ask_all(times: int) -> None:
            answers = list(pool.map(client.detect, images * times))
            assert len(answers) == len(images) * times

        ask_all(5)  # until every instance has had the largest
        before = size()
        assert before > 0
        ask_all(10)
    assert size() <= before * 1.25


def test_many_clients_come_and_go(server: TritonServer) -> None:
    for number in range(30):
        url = server.grpc_url if number % 2 else server.http_url
        with DetectionClient(url) as client:
            assert len(client.detect(CAT)) == 1


def test_a_picture_of_one_colour_has_no_detections(server: TritonServer) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (640, 480), (114, 114, 114)).save(stream, "JPEG")
    with DetectionClient(server.grpc_url) as client:
        found = client.detect(stream.getvalue())
    assert len(found) == 0
    assert found.boxes_xyxy.shape == (0, 4)


def test_what_is_under_way_when_the_server_ends_is_answered(repository: Path) -> None:
    """Triton alone refuses the later steps of an ensemble's requests when it is told to end."""
    cup, ending = jpeg("coffee"), threading.Event()
    requests: list[tuple[float, float, str]] = []

    def ask(url: str) -> None:
        with DetectionClient(url, retries=0, timeout=30) as client:
            while not ending.is_set():
                sent, error = time.monotonic(), ""
                try:
                    client.detect(cup)
                except ServerUnavailableError as refusal:
                    error = refusal.message
                    time.sleep(0.02)
                requests.append((sent, time.monotonic(), error))

    with on_any_ports(repository) as own:
        threads = [threading.Thread(target=ask, args=(own.grpc_url,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        ended = time.monotonic()
    ending.set()
    for thread in threads:
        thread.join()
    # A request may take some milliseconds until it is at the server.
    under_way = [error for sent, answered, error in requests if sent < ended - 0.04 < answered]
    assert under_way
    assert [error for error in under_way if error] == []
    assert any(error for _, _, error in requests)  # later ones
    assert not [error for _, _, error in requests if "scheduler for model" in error]
