"""Triton's own protocol, by a client that knows nothing of this project."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc as triton_grpc
from tritonclient import http as triton_http

from local_server import TritonServer
from photos import jpeg

MODELS = ("detection", "preprocess", "detector", "postprocess")
LABELS = Path(__file__).resolve().parents[2] / "model_repository/detector/labels.txt"
CAT = jpeg("chelsea")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        text: str = response.read().decode()
    return text


@pytest.fixture
def http(server: TritonServer) -> str:
    return server.http_url


def infer(client: triton_grpc.InferenceServerClient, image: bytes = CAT) -> triton_grpc.InferResult:
    tensor = triton_grpc.InferInput("IMAGE", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image]], np.object_))
    return client.infer("detection", [tensor])


def test_health(http: str) -> None:
    for path in ("health/live", "health/ready", *(f"models/{name}/ready" for name in MODELS)):
        assert get(f"{http}/v2/{path}") == ""


def test_server_metadata(http: str) -> None:
    metadata = json.loads(get(f"{http}/v2"))
    assert metadata["name"] == "triton"
    assert {"binary_tensor_data", "statistics", "model_configuration"} <= set(
        metadata["extensions"]
    )


def test_model_metadata_is_the_contract(http: str) -> None:
    metadata = json.loads(get(f"{http}/v2/models/detection"))
    assert {t["name"]: (t["datatype"], t["shape"]) for t in metadata["inputs"]} == {
        "IMAGE": ("BYTES", [-1, 1]),
        "SCORE_THRESHOLD": ("FP32", [-1, 1]),
        "IOU_THRESHOLD": ("FP32", [-1, 1]),
        "MAX_DETECTIONS": ("INT32", [-1, 1]),
    }
    assert {t["name"]: (t["datatype"], t["shape"]) for t in metadata["outputs"]} == {
        "num_detections": ("INT32", [-1, 1]),
        "detection_boxes": ("FP32", [-1, 300, 4]),
        "detection_scores": ("FP32", [-1, 300]),
        "detection_classes": ("INT32", [-1, 300]),
    }


def test_model_config_has_the_labels(http: str) -> None:
    config = json.loads(get(f"{http}/v2/models/detection/config"))
    assert config["platform"] == "ensemble"
    assert config["max_batch_size"] >= 8
    labels = json.loads(config["parameters"]["labels"]["string_value"])
    assert labels == LABELS.read_text().splitlines()
    assert len(labels) == 80


def test_warm_up_is_on_the_composing_models(http: str) -> None:
    for name in MODELS[1:]:
        assert json.loads(get(f"{http}/v2/models/{name}/config"))["model_warmup"]


def test_inference_and_padding_rows(server: TritonServer) -> None:
    with triton_grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        result = infer(client)
    count = result.as_numpy("num_detections")[0, 0]
    assert count == 1
    assert result.as_numpy("detection_classes")[0, 0] == 15  # cat
    for name in ("boxes", "scores", "classes"):
        rows = result.as_numpy(f"detection_{name}")[0]
        assert rows[:count].any()
        assert not rows[count:].any()


def test_http_inference_in_json_and_binary(server: TritonServer) -> None:
    with triton_http.InferenceServerClient(server.http_url.removeprefix("http://")) as client:
        tensor = triton_http.InferInput("IMAGE", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[CAT]], np.object_), binary_data=True)
        answers = [
            client.infer(
                "detection",
                [tensor],
                outputs=[triton_http.InferRequestedOutput("detection_boxes", binary_data=binary)],
            ).as_numpy("detection_boxes")
            for binary in (True, False)
        ]
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-3)


def test_classification_extension_uses_the_labels(server: TritonServer) -> None:
    # Triton's own way to labels: the detector's output carries the label file.
    with triton_grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        config = client.get_model_config("detector", as_json=True)["config"]
    assert config["output"][0]["label_filename"] == "labels.txt"


def test_statistics_count_every_request(server: TritonServer) -> None:
    with triton_grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:

        def count() -> int:
            stats = client.get_inference_statistics("detection").model_stats[0]
            return int(stats.inference_stats.success.count)

        before = count()
        for _ in range(5):
            infer(client)
        # The health supervisor's own inferences are counted as well.
        assert count() >= before + 5


def metric(text: str, name: str, **labels: str) -> float:
    """Sum of a metric's series that have these labels."""
    found = 0.0
    for line in text.splitlines():
        match = re.fullmatch(rf"{name}\{{(.*)\}} (\S+)", line)
        if match and all(f'{key}="{value}"' in match[1] for key, value in labels.items()):
            found += float(match[2])
    return found


def test_metrics(server: TritonServer) -> None:
    before = get(server.metrics_url)
    with triton_grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        for _ in range(5):
            infer(client)
    after = get(server.metrics_url)
    for name in MODELS:
        gained = metric(after, "nv_inference_request_success", model=name) - metric(
            before, "nv_inference_request_success", model=name
        )
        assert gained >= 5
    assert "nv_inference_queue_duration_us" in after


def test_response_cache_answers_repeated_requests(cached_server: TritonServer) -> None:
    address = cached_server.grpc_url.removeprefix("grpc://")
    before = get(cached_server.metrics_url)
    with triton_grpc.InferenceServerClient(address) as client:
        for _ in range(4):
            infer(client, CAT + b"\0")  # an image of this test's own
    after = get(cached_server.metrics_url)
    hits = "nv_cache_num_hits_per_model"
    assert metric(after, hits, model="detection") - metric(before, hits, model="detection") == 3


def test_bare_curl(server: TritonServer, tmp_path: Path) -> None:
    """The README's script, run as it stands there."""
    readme = (LABELS.parents[2] / "README.md").read_text()
    script = re.search(r"```bash\n(# Detect with nothing but curl.*?)```", readme, re.DOTALL)
    assert script is not None
    (tmp_path / "photo.jpg").write_bytes(CAT)
    answer = subprocess.run(
        ["bash", "-c", script[1].replace("http://127.0.0.1:8000", server.http_url)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    outputs = {output["name"]: output["data"] for output in json.loads(answer.stdout)["outputs"]}
    assert outputs["num_detections"] == [1]
    assert outputs["detection_classes"][0] == 15
