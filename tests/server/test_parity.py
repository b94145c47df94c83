"""What is served equals the in-process pipeline: over both protocols, alone and in batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detection_client import DetectionClient
from detserve.detections import Detections
from detserve.engines import OnnxRuntimeEngine
from detserve.imaging import preprocess
from detserve.nms import non_maximum_suppression
from detserve.pipeline import Pipeline
from detserve.repository import DetectorRepository
from local_server import TritonServer
from tests.images import odd_images

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
IMAGES = odd_images()
THRESHOLDS: list[dict[str, Any]] = [
    {},
    {"score_threshold": 0.01},
    {"score_threshold": 0.05, "iou_threshold": 0.2, "max_detections": 7},
    {"score_threshold": 0.0, "iou_threshold": 1.0, "max_detections": 300},
]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.from_repository(REPOSITORY)


@pytest.fixture(scope="module", params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def client_of(server: TritonServer, protocol: str) -> DetectionClient:
    return DetectionClient(server.grpc_url if protocol == "grpc" else server.http_url)


@pytest.fixture(scope="module")
def client(server: TritonServer, protocol: str) -> Iterator[DetectionClient]:
    with client_of(server, protocol) as client:
        yield client


def assert_same(served: Detections, expected: Detections) -> None:
    assert len(served) == len(expected)
    np.testing.assert_array_equal(served.class_ids, expected.class_ids)
    np.testing.assert_allclose(served.scores, expected.scores, rtol=0, atol=1e-4)
    np.testing.assert_allclose(served.boxes_xyxy, expected.boxes_xyxy, rtol=0, atol=0.01)
    assert served.labels == expected.labels


@pytest.mark.parametrize("thresholds", THRESHOLDS, ids=str)
@pytest.mark.parametrize("name", IMAGES)
def test_alone(
    client: DetectionClient, pipeline: Pipeline, name: str, thresholds: dict[str, Any]
) -> None:
    expected = pipeline.detect(IMAGES[name], **thresholds)
    assert_same(client.detect(IMAGES[name], **thresholds), expected)


@pytest.mark.parametrize("thresholds", THRESHOLDS, ids=str)
def test_in_a_batch_with_images_of_other_sizes(
    client: DetectionClient, pipeline: Pipeline, thresholds: dict[str, Any]
) -> None:
    images = list(IMAGES.values())
    served = client.detect_batch(images, **thresholds)
    for image, found in zip(images, served, strict=True):
        assert_same(found, pipeline.detect(image, **thresholds))


def test_with_the_response_cache(
    cached_server: TritonServer, pipeline: Pipeline, protocol: str
) -> None:
    with client_of(cached_server, protocol) as client:
        for _ in range(2):  # the second time from the cache
            for thresholds in THRESHOLDS:
                images = list(IMAGES.values())
                batch = client.detect_batch(images, **thresholds)
                for image, found in zip(images, batch, strict=True):
                    expected = pipeline.detect(image, **thresholds)
                    assert_same(found, expected)
                    assert_same(client.detect(image, **thresholds), expected)


def test_suppression_of_real_candidates_matches_opencv() -> None:
    repository = DetectorRepository(REPOSITORY)
    engine = OnnxRuntimeEngine(repository.model_file())
    fit = repository.preprocess_settings()
    batch = np.empty((1, fit.height, fit.width, 3), np.uint8)
    suppressed = 0
    for image in IMAGES.values():
        preprocess(image, fit, batch[0])
        rows = engine.infer(batch)[0]
        boxes_xywh = np.hstack([rows[:, :2], rows[:, 2:4] - rows[:, :2]])
        for threshold in (0.3, 0.5, 0.6):
            ours = non_maximum_suppression(rows[:, :4], rows[:, 5], threshold)
            theirs = cv2.dnn.NMSBoxesBatched(
                boxes_xywh.tolist(),
                rows[:, 4].tolist(),
                rows[:, 5].astype(int).tolist(),
                0.0,
                threshold,
            )
            assert ours.tolist() == sorted(np.asarray(theirs).tolist())
            suppressed += len(rows) - len(ours)
    assert suppressed > 1000


def test_the_photos_show_what_they_show(client: DetectionClient) -> None:
    names = ("astronaut", "coffee", "chelsea", "motorcycle_left")
    shown = [{found.label for found in client.detect(IMAGES[f"{n}, JPEG"])} for n in names]
    wanted = [{"person"}, {"cup", "dining table"}, {"cat"}, {"motorcycle"}]
    assert [labels >= want for labels, want in zip(shown, wanted, strict=True)] == [True] * 4
