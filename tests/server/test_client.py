"""The client against a real Triton: both protocols, blocking and with asyncio."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detection_client import (
    AsyncDetectionClient,
    DeadlineExceededError,
    DetectionClient,
    Detections,
    InvalidInputError,
    ModelNotFoundError,
    QueueFullError,
    ServerError,
    ServerUnavailableError,
)
from local_server import TritonServer
from photos import PHOTOS, jpeg, photo_path
from tests.images import encode, photo
from tests.server.conftest import on_any_ports

CAT = jpeg("chelsea")
# It takes a while to decode: a PNG has no reduced scale.
LARGE = encode(photo("chelsea").resize((3000, 2000)), "PNG", compress_level=1)
PATHS = [photo_path(name) for name in PHOTOS]
EXPECTED = [{"person"}, {"cup", "dining table"}, {"cat"}, {"motorcycle"}]

Call = Callable[..., Any]


@pytest.fixture(params=["grpc", "http"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(server: TritonServer, scheme: str) -> str:
    return server.grpc_url if scheme == "grpc" else server.http_url


def blocking(url: str, method: str, *arguments: Any, settings: Any = None, **options: Any) -> Any:
    """Call a method of a client that lives as long as the call."""
    with DetectionClient(url, **settings or {}) as client:
        return getattr(client, method)(*arguments, **options)


def with_asyncio(
    url: str, method: str, *arguments: Any, settings: Any = None, **options: Any
) -> Any:
    """The same of the asyncio client."""

    async def run() -> Any:
        async with AsyncDetectionClient(url, **settings or {}) as client:
            call: Awaitable[Any] = getattr(client, method)(*arguments, **options)
            return await call

    return asyncio.run(run())


@pytest.fixture(params=[blocking, with_asyncio])
def call(request: pytest.FixtureRequest) -> Call:
    function: Call = request.param
    return function


def labels(found: Detections) -> set[str]:
    return {one.label for one in found}


def assert_equal(first: Detections, second: Detections) -> None:
    np.testing.assert_array_equal(first.boxes_xyxy, second.boxes_xyxy)
    np.testing.assert_array_equal(first.scores, second.scores)
    np.testing.assert_array_equal(first.class_ids, second.class_ids)


@pytest.mark.parametrize(("path", "expected"), [*zip(PATHS, EXPECTED, strict=True)])
def test_the_photos(call: Call, url: str, path: Path, expected: set[str]) -> None:
    found: Detections = call(url, "detect", path)
    assert labels(found) == expected
    assert list(found.scores) == sorted(found.scores, reverse=True)
    width, height = photo(path.stem).size
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy <= [width, height, width, height]).all()
    found.boxes_xyxy[:] = 0  # the caller's own


def test_path_bytes_and_array_give_the_same(call: Call, url: str) -> None:
    path = photo_path("chelsea")
    array = np.asarray(photo("chelsea"))
    expected = call(url, "detect", path)
    for image in (str(path), path.read_bytes(), bytearray(path.read_bytes()), array):
        assert_equal(call(url, "detect", image), expected)
    assert_equal(call(url, "detect", array, settings={"array_encoding": "png"}), expected)
    in_jpeg = call(url, "detect", array, settings={"array_encoding": "jpeg"})
    assert labels(in_jpeg) == {"cat"}
    np.testing.assert_allclose(in_jpeg.scores, expected.scores, atol=0.05)


def test_arrays_grey_and_transparent(call: Call, url: str) -> None:
    rgba = np.asarray(photo("chelsea").convert("RGBA"))
    assert labels(call(url, "detect", rgba)) == {"cat"}
    assert labels(call(url, "detect", rgba[..., 1])) == {"cat"}
    invisible = rgba * np.array([1, 1, 1, 0], np.uint8)
    assert "cat" not in labels(call(url, "detect", invisible))


def test_thresholds(call: Call, url: str) -> None:
    everything = call(url, "detect", CAT, score_threshold=0.0, iou_threshold=1.0)
    assert len(everything) > 50
    assert len(call(url, "detect", CAT, score_threshold=0.01)) < len(everything)
    assert_equal(
        call(url, "detect", CAT, score_threshold=0.0, iou_threshold=1.0, max_detections=7),
        everything[:7],
    )
    assert len(call(url, "detect", CAT, score_threshold=1.0)) == 0
    batch = call(url, "detect_batch", [CAT] * 3, score_threshold=0.0, max_detections=5)
    assert [len(found) for found in batch] == [5, 5, 5]


def test_thresholds_refused(call: Call, url: str) -> None:
    with pytest.raises(InvalidInputError, match="score_threshold"):
        call(url, "detect", CAT, score_threshold=1.5)
    with pytest.raises(InvalidInputError, match="max_detections must be at most 300"):
        call(url, "detect", CAT, max_detections=301)


def test_many_images_in_batches(call: Call, url: str) -> None:
    alone = [call(url, "detect", path) for path in PATHS]
    for concurrency in (1, 4):
        settings = {"concurrency": concurrency}
        batch = call(url, "detect_batch", PATHS * 10, settings=settings)
        for index, found in enumerate(batch):
            assert_equal(found, alone[index % 4])


def test_bad_images_in_a_batch(call: Call, url: str, tmp_path: Path) -> None:
    missing = tmp_path / "missing.jpg"
    images = [CAT, b"no image", CAT, missing, *[CAT] * 30, b"", CAT]
    outcomes = call(url, "detect_batch", images, return_exceptions=True)
    assert len(outcomes) == len(images)
    for index, outcome in enumerate(outcomes):
        if index in (1, 3, 34):
            assert isinstance(outcome, InvalidInputError)
            assert outcome.index == index
        else:
            assert labels(outcome) == {"cat"}
    assert "not a JPEG" in str(outcomes[1])
    assert str(missing) in str(outcomes[3])

    with pytest.raises(InvalidInputError, match=r"image 1: .*and 2 other images failed") as caught:
        call(url, "detect_batch", images)
    assert caught.value.index == 1


def test_bad_input_is_told_in_plain_words(call: Call, url: str) -> None:
    for image, says in (
        (b"no image", "not a JPEG, PNG"),
        (CAT[:3000], "truncated or corrupt"),
        (bytes(21_000_000), "21,000,000 bytes; the limit"),
    ):
        with pytest.raises(InvalidInputError, match=says) as caught:
            call(url, "detect", image)
        assert "ensemble" not in str(caught.value)
        assert "request id" not in str(caught.value)


def test_unknown_model(call: Call, url: str) -> None:
    with pytest.raises(ModelNotFoundError, match="nope"):
        call(url, "detect", CAT, settings={"model": "nope"})
    with pytest.raises(ModelNotFoundError, match="nope"):
        call(url, "detect_batch", [CAT], settings={"model": "nope"})
    assert call(url, "server_ready", settings={"model": "nope"}) is False


def test_a_model_that_is_no_detector(call: Call, url: str) -> None:
    with pytest.raises((InvalidInputError, ServerError)):
        call(url, "detect", CAT, settings={"model": "detector"})


def test_model_info_and_readiness(call: Call, url: str, repository: Path) -> None:
    info = call(url, "model_info")
    assert info.name == "detection"
    assert info.max_batch_size >= 8
    assert list(info.labels) == (repository / "detector/labels.txt").read_text().splitlines()
    assert call(url, "server_ready") is True


def test_a_deadline_that_passes(call: Call, url: str) -> None:
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=f"no answer from {url} within 0.0"):
        call(url, "detect_batch", [CAT] * 64, timeout=0.02)
    assert time.monotonic() - start < 3
    assert labels(call(url, "detect", CAT)) == {"cat"}


def test_a_client_lives_on_after_errors(url: str) -> None:
    with DetectionClient(url) as client:
        client.model_info()
        for _ in range(3):
            with pytest.raises(InvalidInputError):
                client.detect(b"no image")
            with pytest.raises(DeadlineExceededError):
                client.detect(CAT, timeout=0.0005)
            assert labels(client.detect(CAT)) == {"cat"}


def test_many_threads_share_a_client(url: str) -> None:
    before = threading.active_count()  # those of the session's servers
    with DetectionClient(url) as client, ThreadPoolExecutor(12) as pool:
        expected = [client.detect(path) for path in PATHS]
        found = list(pool.map(lambda index: client.detect(PATHS[index % 4]), range(96)))
        assert threading.active_count() < before + 12 + 12  # the pool's, and a few of gRPC
    for index, one in enumerate(found):
        assert_equal(one, expected[index % 4])


def test_threads_leave_nothing_behind(url: str) -> None:
    """Each request in a thread of its own, as small web servers do it."""

    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with DetectionClient(url) as client:
        client.detect(CAT)
        before, threads = open_files(), threading.active_count()
        for _ in range(20):
            thread = threading.Thread(target=client.detect, args=(CAT,))
            thread.start()
            thread.join()
        assert open_files() <= before + 2
        assert threading.active_count() <= threads
    assert open_files() <= before + 2


def test_many_tasks_share_a_client(url: str) -> None:
    """Few enough that a busy machine refuses none."""

    async def work(client: AsyncDetectionClient) -> list[Detections]:
        return [await client.detect(CAT) for _ in range(3)]

    async def run() -> list[list[Detections]]:
        async with AsyncDetectionClient(url) as client:
            return await asyncio.gather(*(work(client) for _ in range(16)))

    assert all(labels(found) == {"cat"} for three in asyncio.run(run()) for found in three)


def test_a_cancelled_task_ends_at_once(url: str) -> None:
    async def run() -> None:
        async with AsyncDetectionClient(url) as client:
            await client.model_info()
            task = asyncio.create_task(client.detect_batch([CAT] * 64))
            await asyncio.sleep(0.05)
            task.cancel()
            start = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - start < 0.5

    asyncio.run(run())


def test_the_connection_is_lost_between_requests(server: TritonServer, scheme: str) -> None:
    """A connection that breaks while it is idle, as behind a load balancer, costs no error."""
    port = server.ports.grpc if scheme == "grpc" else server.ports.http
    with Relay(port) as relay, DetectionClient(f"{scheme}://127.0.0.1:{relay.port}") as client:
        for _ in range(3):
            assert labels(client.detect(CAT)) == {"cat"}
            relay.cut()


def test_the_connection_is_lost_in_mid_request(server: TritonServer, scheme: str) -> None:
    port = server.ports.grpc if scheme == "grpc" else server.ports.http
    # One request at a time: on a busy machine several would wait for longer than a queue lets them.
    with (
        Relay(port) as relay,
        DetectionClient(f"{scheme}://127.0.0.1:{relay.port}", concurrency=1) as client,
    ):
        client.model_info()
        timers = [threading.Timer(delay, relay.cut) for delay in (0.05, 0.2)]
        for timer in timers:
            timer.start()
        assert len(client.detect_batch([CAT] * 48)) == 48  # sent again, unnoticed
        for timer in timers:
            timer.join()
    with Relay(port) as relay:
        url = f"{scheme}://127.0.0.1:{relay.port}"
        with DetectionClient(url, retries=0, concurrency=1) as client:
            client.model_info()
            timer = threading.Timer(0.05, relay.cut)
            timer.start()
            with pytest.raises(ServerUnavailableError, match=url):
                client.detect_batch([CAT] * 48)
            timer.join()


class Relay:
    """Passes bytes on to a port of this machine, and cuts its connections when told to."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Relay:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()

    def cut(self) -> None:
        for one in self._sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has been cut before

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += near, far
            for source, sink in ((near, far), (far, near)):
                thread = threading.Thread(target=self._pass_on, args=(source, sink))
                self._threads.append(thread)
                thread.start()

    @staticmethod
    def _pass_on(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
        except OSError:
            return


@pytest.fixture(scope="module")
def strict_server(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    """A server with a queue of one image that heeds timeouts, and a configuration under a key."""
    copy = tmp_path_factory.mktemp("strict") / "models"
    shutil.copytree(repository, copy)
    config = copy / "preprocess" / "config.pbtxt"
    text = re.sub(r"(?ms)^dynamic_batching.*?^\}$", "", config.read_text())
    text = re.sub(r"count: \d+", "count: 1", text)
    # A request's timeout counts only where it is shorter than a default one.
    config.write_text(
        f"{text}\ndynamic_batching {{ default_queue_policy {{ max_queue_size: 1"
        f" default_timeout_microseconds: 60000000 allow_timeout_override: true }} }}\n"
    )
    # Only in gRPC: the launcher reads the configuration over HTTP itself.
    restricted = ["--grpc-restricted-protocol=model-config:key=sesame"]
    options: dict[str, Any] = {"supervise": False, "extra_arguments": restricted}
    with on_any_ports(copy, **options) as running:
        yield running


@pytest.fixture
def strict_url(strict_server: TritonServer, scheme: str) -> str:
    return strict_server.grpc_url if scheme == "grpc" else strict_server.http_url


def test_a_restricted_configuration(call: Call, strict_server: TritonServer) -> None:
    url = strict_server.grpc_url
    assert labels(call(url, "detect", CAT)) == {"class 15"}
    one_by_one = {"concurrency": 1}
    assert len(call(url, "detect_batch", [CAT] * 3, settings=one_by_one)) == 3
    headers = {"Triton-gRPC-Protocol-Key": "sesame"}
    assert labels(call(url, "detect", CAT, settings={"headers": headers})) == {"cat"}
    assert labels(call(url, "detect", CAT, headers=headers)) == {"cat"}
    wrong = {"headers": {"triton-grpc-protocol-key": "open"}}
    assert labels(call(url, "detect", CAT, settings=wrong, headers=headers)) == {"cat"}


def test_a_full_queue_reaches_the_caller(strict_url: str) -> None:
    with DetectionClient(strict_url) as client:

        def ask(_: int) -> str:
            try:
                client.detect(LARGE)
            except QueueFullError as error:
                return str(error)
            return "answered"

        with ThreadPoolExecutor(16) as pool:
            outcomes = set(pool.map(ask, range(48)))
    assert outcomes == {
        "answered",
        f"the server at {strict_url} is busy: Exceeds maximum queue size",
    }


def test_a_request_that_waits_too_long_is_dropped(strict_server: TritonServer) -> None:
    """Both ends give up: the client at its deadline, the server when it finds it passed.

    Not over gRPC: the gRPC endpoint of Triton 2.51 crashes when a request is cancelled, as at a
    deadline, while an ensemble's step refuses it for a full queue (Triton's issue 7368).
    """
    with DetectionClient(strict_server.http_url) as client, ThreadPoolExecutor(8) as pool:
        client.detect(CAT)

        def ask(_: int) -> type[Exception] | None:
            try:
                client.detect(LARGE, timeout=0.05)
            except (QueueFullError, DeadlineExceededError) as error:
                return type(error)
            return None

        assert DeadlineExceededError in set(pool.map(ask, range(32)))
        assert wait_for_answer(client) == 1


def wait_for_answer(client: DetectionClient) -> int:
    """The detections in an image, once the queue has room again."""
    for _ in range(100):
        try:
            return len(client.detect(CAT))
        except QueueFullError:
            time.sleep(0.1)
    raise AssertionError("the queue stays full")
