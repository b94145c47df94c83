"""Which requests are sent again, and when. The transports are fakes.

A real server fails when it likes; what is counted here is how often it is asked.
"""

# ruff: noqa: ARG002 - the fakes have the signatures of the transports

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from detection_client import (
    AccessDeniedError,
    AsyncDetectionClient,
    DeadlineExceededError,
    DetectionClient,
    DetectionClientError,
    Detections,
    InvalidInputError,
    ModelNotFoundError,
    QueueFullError,
    ServerError,
    ServerUnavailableError,
    _flows,
)
from detection_client._tensors import InferRequest

OUTPUTS = {
    "num_detections": np.array([[1]], np.int32),
    "detection_boxes": np.array([[[1, 2, 3, 4], [0, 0, 0, 0]]], np.float32),
    "detection_scores": np.array([[0.5, 0]], np.float32),
    "detection_classes": np.array([[1, 0]], np.int32),
}
CONFIG: dict[str, Any] = {
    "max_batch_size": 4,
    "parameters": {"labels": {"string_value": '["cat", "dog"]'}},
}


class Result:
    def __init__(self, count: int) -> None:
        self._count = count

    def as_numpy(self, name: str) -> npt.NDArray[Any] | None:
        return OUTPUTS[name].repeat(self._count, axis=0) if name in OUTPUTS else None


class Fake:
    """Fails with the errors given, in their order, then answers; refuses images that say BAD."""

    def __init__(self, *errors: DetectionClientError, config: object = CONFIG) -> None:
        self.errors = list(errors)
        self.config = config
        self.requests: list[InferRequest] = []
        self.config_calls = 0

    def infer(self, request: InferRequest, timeout: float) -> Result:
        assert timeout > 0
        self.requests.append(request)
        if self.errors:
            raise self.errors.pop(0)
        if any(b"BAD" in image for image in request.images):
            raise InvalidInputError("the data is not an image")
        return Result(len(request.images))

    def model_config(
        self, model: str, timeout: float, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        self.config_calls += 1
        if isinstance(self.config, DetectionClientError):
            raise self.config
        assert isinstance(self.config, dict)
        return self.config

    def model_ready(self, model: str, timeout: float) -> bool:
        return True

    def close(self) -> None: ...


class AsyncFake:
    def __init__(self, fake: Fake) -> None:
        self._fake = fake

    async def infer(self, request: InferRequest, timeout: float) -> Any:
        await asyncio.sleep(0)
        return self._fake.infer(request, timeout)

    async def model_config(
        self, model: str, timeout: float, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        return self._fake.model_config(model, timeout, headers)

    async def model_ready(self, model: str, timeout: float) -> bool:
        return True

    async def close(self) -> None: ...


Call = Callable[..., Any]


@pytest.fixture(params=["blocking", "asyncio"])
def call(request: pytest.FixtureRequest) -> Call:
    """Calls a method of a client of either kind that talks to a fake."""

    def blocking(fake: Fake, method: str, *arguments: Any, **options: Any) -> Any:
        settings = options.pop("settings", {})
        with DetectionClient("grpc://fake", **settings) as client:
            client._transport = fake
            return getattr(client, method)(*arguments, **options)

    def with_asyncio(fake: Fake, method: str, *arguments: Any, **options: Any) -> Any:
        settings = options.pop("settings", {})

        async def run() -> Any:
            async with AsyncDetectionClient("grpc://fake", **settings) as client:
                client._transport = AsyncFake(fake)
                return await getattr(client, method)(*arguments, **options)

        return asyncio.run(run())

    return blocking if request.param == "blocking" else with_asyncio


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_flows, "FIRST_PAUSE_S", 0.001)


def test_unavailable_is_asked_again(call: Call) -> None:
    fake = Fake(ServerUnavailableError("gone"), ServerUnavailableError("gone"))
    found: Detections = call(fake, "detect", b"image")
    assert [(one.label, one.score) for one in found] == [("dog", 0.5)]
    assert len(fake.requests) == 3


def test_retries_end(call: Call) -> None:
    fake = Fake(*[ServerUnavailableError("gone")] * 9)
    with pytest.raises(ServerUnavailableError, match="gone"):
        call(fake, "detect", b"image", settings={"retries": 2})
    assert len(fake.requests) == 3


def test_no_retries(call: Call) -> None:
    fake = Fake(ServerUnavailableError("gone"))
    with pytest.raises(ServerUnavailableError):
        call(fake, "detect", b"image", settings={"retries": 0})
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    "kind",
    [
        InvalidInputError,
        QueueFullError,
        DeadlineExceededError,
        ModelNotFoundError,
        AccessDeniedError,
        ServerError,
    ],
)
def test_everything_else_is_not(call: Call, kind: type[DetectionClientError]) -> None:
    fake = Fake(kind("no"))
    with pytest.raises(kind):
        call(fake, "detect", b"image")
    assert len(fake.requests) == 1


def test_the_pauses_double_and_end_with_the_deadline(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_flows, "FIRST_PAUSE_S", 0.1)
    fake = Fake(*[ServerUnavailableError("gone")] * 99)
    start = time.monotonic()
    with pytest.raises(ServerUnavailableError):
        call(fake, "detect", b"image", timeout=0.6, settings={"retries": 99})
    assert 0.1 < time.monotonic() - start < 0.7
    assert 3 <= len(fake.requests) <= 5  # after 0, 0.1, 0.3 s, or sooner by chance


def test_the_configuration_is_read_once(call: Call) -> None:
    fake = Fake()
    call(fake, "detect_batch", [b"image"] * 9)
    assert fake.config_calls == 1


def test_a_server_that_keeps_its_configuration_to_itself(call: Call) -> None:
    fake = Fake(config=AccessDeniedError("restricted"))
    found: Detections = call(fake, "detect", b"image")
    assert found[0].label == "class 1"
    assert len(call(fake, "detect_batch", [b"image"] * 3)) == 3


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"parameters": {"labels": {"string_value": "no JSON"}}},
        {"parameters": {"labels": {"string_value": '{"a": 1}'}}},
        {"parameters": {"labels": {}}, "max_batch_size": 0},
    ],
    ids=str,
)
def test_a_model_without_labels(call: Call, config: dict[str, Any]) -> None:
    found: Detections = call(Fake(config=config), "detect", b"image")
    assert found[0].label == "class 1"


def test_batches_are_as_few_and_even_as_can_be(call: Call) -> None:
    fake = Fake()
    assert len(call(fake, "detect_batch", (b"image" for _ in range(9)))) == 9
    assert sorted(len(request.images) for request in fake.requests) == [3, 3, 3]
    assert call(fake, "detect_batch", []) == []


@pytest.mark.parametrize("image", ["photo.jpg", b"image", Path("photo.jpg")])
def test_one_image_is_no_batch(call: Call, image: Any) -> None:
    with pytest.raises(InvalidInputError, match="several images"):
        call(Fake(), "detect_batch", image)


def test_a_stack_of_arrays_is_a_batch(call: Call) -> None:
    assert len(call(Fake(), "detect_batch", np.zeros((5, 8, 8, 3), np.uint8))) == 5


def test_large_images_share_no_request(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_flows, "MAX_REQUEST_BYTES", 250)
    fake = Fake()
    images = [bytes([65 + index]) * 100 for index in range(4)]
    assert len(call(fake, "detect_batch", images)) == 4
    assert [len(request.images) for request in fake.requests] == [2, 2]


IMAGES = [b"0", b"1 BAD", b"2", b"", b"4", b"5", b"6 BAD", b"7", b"8"]
BAD = [1, 3, 6]


def test_bad_images_cost_no_other_its_answer(call: Call) -> None:
    outcomes: Sequence[Any] = call(Fake(), "detect_batch", IMAGES, return_exceptions=True)
    assert [index for index, one in enumerate(outcomes) if not isinstance(one, Detections)] == BAD
    for index in BAD:
        assert isinstance(outcomes[index], InvalidInputError)
        assert outcomes[index].index == index
        assert f"image {index}" in str(outcomes[index])


def test_the_first_bad_image_is_raised_after_all_were_asked(call: Call) -> None:
    fake = Fake()
    with pytest.raises(
        InvalidInputError, match=r"image 1: .*not an image.*2 other images"
    ) as caught:
        call(fake, "detect_batch", IMAGES)
    assert caught.value.index == 1
    asked = {image for request in fake.requests for image in request.images}
    assert asked == set(IMAGES) - {b""}


def test_a_lost_server_ends_a_batch(call: Call) -> None:
    settings = {"retries": 0, "concurrency": 1}
    images = [b"image"] * 400
    fake = Fake(*[ServerUnavailableError("gone")] * 100)
    with pytest.raises(ServerUnavailableError, match="image 0"):
        call(fake, "detect_batch", images, settings=settings)
    assert len(fake.requests) < 100

    fake = Fake(ServerUnavailableError("gone"))
    outcomes = call(fake, "detect_batch", images, settings=settings, return_exceptions=True)
    assert sum(isinstance(one, ServerUnavailableError) for one in outcomes) == 4
    assert sum(isinstance(one, Detections) for one in outcomes) == 396


def test_an_unreachable_server_in_a_batch(call: Call) -> None:
    fake = Fake(*[ServerUnavailableError("gone")] * 3, config=ServerUnavailableError("gone"))
    with pytest.raises(ServerUnavailableError):
        call(fake, "detect_batch", [b"image"] * 3, settings={"retries": 0})
    outcomes = call(
        fake, "detect_batch", [b"image"] * 3, settings={"retries": 0}, return_exceptions=True
    )
    assert [type(one) for one in outcomes] == [ServerUnavailableError] * 3


def test_another_kind_of_model(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(OUTPUTS, "detection_scores")
    with pytest.raises(ServerError, match="'detection_scores': is it a detection model"):
        call(Fake(), "detect", b"image")


def test_a_closed_client() -> None:
    client = DetectionClient("grpc://fake")
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.detect(b"image")
