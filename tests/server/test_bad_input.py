"""Hundreds of bad requests: each gets an error of its own, and the server comes to no harm."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from detection_client import DetectionClient, InvalidInputError
from detserve.detections import Detections
from local_server import TritonServer
from photos import jpeg
from tests.images import broken_images

CAT = jpeg("chelsea")


def assert_is_the_cat(found: Detections) -> None:
    assert [one.label for one in found] == ["cat"]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_broken_images(server: TritonServer, protocol: str) -> None:
    broken = broken_images()
    assert len(broken) >= 200
    stubs = server.stub_pids()
    refusals: dict[str, str] = {}
    with DetectionClient(server.grpc_url if protocol == "grpc" else server.http_url) as client:
        for number, (what, data) in enumerate(broken):
            try:
                client.detect(data)
            except InvalidInputError as error:
                refusals[f"{number}: {what}"] = str(error)
            assert_is_the_cat(client.detect(CAT))
    # Flipped bits may leave a file that decodes, as in every viewer; all else is refused.
    readable = {f"{n}: {what}" for n, (what, _) in enumerate(broken)} - refusals.keys()
    assert {what for what in readable if "bits flipped" not in what and "spliced" not in what} == (
        set()
    )
    assert len(refusals) >= 200
    unclear = {w: m for w, m in refusals.items() if "Traceback" in m or not 20 < len(m) < 300}
    assert unclear == {}
    assert server.stub_pids() == stubs


def test_a_bad_image_spoils_no_other_request(server: TritonServer) -> None:
    bad = CAT[: len(CAT) // 2]
    with DetectionClient(server.grpc_url) as client, ThreadPoolExecutor(8) as pool:
        for round_ in range(20):
            images = [CAT] * 8
            images[round_ % 8] = bad
            futures = [pool.submit(client.detect, image) for image in images]
            for index, future in enumerate(futures):
                if index == round_ % 8:
                    with pytest.raises(InvalidInputError, match="truncated"):
                        future.result()
                else:
                    assert_is_the_cat(future.result())


def tensor(name: str, array: np.ndarray[Any, Any], datatype: str) -> triton_grpc.InferInput:
    given = triton_grpc.InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array)
    return given


def image(shape: tuple[int, ...] = (1, 1), data: bytes = CAT) -> triton_grpc.InferInput:
    return tensor("IMAGE", np.full(shape, data, np.object_), "BYTES")


def threshold(name: str, value: float, shape: tuple[int, ...] = (1, 1)) -> triton_grpc.InferInput:
    return tensor(name, np.full(shape, value, np.float32), "FP32")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        pytest.param([], "IMAGE|expected", id="nothing"),
        pytest.param([image((1,))], "shape", id="no batch dimension"),
        pytest.param([image((1, 2))], "shape", id="two images in a row"),
        pytest.param([image((17, 1))], "batch-size must be <= 16", id="batch too large"),
        pytest.param([image((0, 1))], "got 0", id="empty batch"),
        pytest.param(
            [tensor("IMAGE", np.zeros((1, 1), np.float32), "FP32")], "data-type", id="wrong dtype"
        ),
        pytest.param([image(), threshold("SCORE", 0.5)], "SCORE", id="unknown input"),
        pytest.param([image(), threshold("SCORE_THRESHOLD", 1.5)], "score_threshold", id="over 1"),
        pytest.param([image(), threshold("SCORE_THRESHOLD", np.nan)], "score_threshold", id="NaN"),
        pytest.param([image(), threshold("IOU_THRESHOLD", -1)], "iou_threshold", id="below 0"),
        pytest.param(
            [image(), threshold("IOU_THRESHOLD", 0.5, (1, 2))], "shape", id="two thresholds"
        ),
        pytest.param(
            [image((2, 1)), threshold("IOU_THRESHOLD", 0.5)], "batch", id="a threshold too few"
        ),
        pytest.param(
            [image(), tensor("MAX_DETECTIONS", np.full((1, 1), 0, np.int32), "INT32")],
            "max_detections",
            id="no detections wanted",
        ),
        pytest.param(
            [image(), tensor("MAX_DETECTIONS", np.full((1, 1), 301, np.int32), "INT32")],
            "max_detections must be at most 300",
            id="too many detections wanted",
        ),
        pytest.param(
            [image(), tensor("MAX_DETECTIONS", np.full((1, 1), 5.0, np.float32), "FP32")],
            "data-type",
            id="fractional count",
        ),
    ],
)
def test_wrong_tensors(
    server: TritonServer, inputs: list[triton_grpc.InferInput], message: str
) -> None:
    address = server.grpc_url.removeprefix("grpc://")
    with triton_grpc.InferenceServerClient(address) as client:
        with pytest.raises(InferenceServerException, match=message) as caught:
            client.infer("detection", inputs)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert "Traceback" not in str(caught.value)
        counts = client.infer("detection", [image()]).as_numpy("num_detections")
        assert counts.tolist() == [[1]]


def test_one_bad_image_in_one_request_is_named(server: TritonServer) -> None:
    batch = np.array([[CAT], [b"no image"], [CAT]], np.object_)
    with triton_grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        with pytest.raises(InferenceServerException, match="image 1 of 3: the data is not") as bad:
            client.infer("detection", [tensor("IMAGE", batch, "BYTES")])
        assert bad.value.status() == "StatusCode.INVALID_ARGUMENT"
