"""The Python-based backends in a real Triton, with models and settings of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient import grpc as triton_grpc

from detserve.imaging import PreprocessSettings, preprocess
from local_server import ServerError, TritonServer
from tests.images import odd_images
from tests.models import write_detector

ONNX_MODEL = """
name: "tiny"
backend: "onnxruntime"
max_batch_size: 4
input [ { name: "images" data_type: TYPE_UINT8 dims: [ 96, 96, 3 ] } ]
output [ { name: "candidates" data_type: TYPE_FP32 dims: [ 3, 6 ] } ]
"""
OPENVINO_MODEL = """
name: "tiny"
backend: "openvino"
default_model_filename: "model.onnx"
input [ { name: "images" data_type: TYPE_UINT8 dims: [ -1, 96, 96, 3 ] } ]
output [ { name: "candidates" data_type: TYPE_FP32 dims: [ -1, 3, 6 ] } ]
instance_group [ { kind: KIND_CPU count: 2 } ]
"""
PREPROCESS_MODEL = """
name: "fit"
backend: "preprocess_backend"
max_batch_size: 8
input [ { name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] } ]
output [
  { name: "images" data_type: TYPE_UINT8 dims: [ 96, 160, 3 ] },
  { name: "geometry" data_type: TYPE_FP32 dims: [ 6 ] }
]
instance_group [ { kind: KIND_CPU count: 1 } ]
dynamic_batching { }
"""
Make = Callable[[str], TritonServer]


def parameters(**values: str) -> str:
    return "".join(
        f'parameters {{ key: "{name}" value: {{ string_value: "{text}" }} }}\n'
        for name, text in values.items()
    )


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Make]:
    servers = []

    def make(config: str) -> TritonServer:
        name = "tiny" if "tiny" in config else "fit"
        version = tmp_path / name / "1"
        version.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "config.pbtxt").write_text(config)
        if name == "tiny":
            write_detector(version / "model.onnx")
        servers.append(TritonServer(tmp_path, http_port=0, grpc_port=0, metrics_port=0))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


def infer(
    server: TritonServer, model: str, name: str, array: np.ndarray[Any, Any], datatype: str
) -> triton_grpc.InferResult:
    tensor = triton_grpc.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    with triton_grpc.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as client:
        return client.infer(model, [tensor])


@pytest.mark.parametrize(
    "settings",
    [
        "",
        parameters(intra_op_thread_count="2", inter_op_thread_count="2", execution_mode="1"),
        "optimization { graph { level: -1 } }",
        "optimization { graph { level: 1 } }",
        "optimization { graph { level: 2 } }",
    ],
)
def test_onnxruntime_settings(serve: Make, settings: str) -> None:
    server = serve(f"{ONNX_MODEL} instance_group [ {{ kind: KIND_CPU count: 3 }} ] {settings}")
    server.start()
    assert list(server.stub_pids().values()) == ["tiny"] * 3
    images = np.zeros((2, 96, 96, 3), np.uint8)
    candidates = infer(server, "tiny", "images", images, "UINT8").as_numpy("candidates")
    assert candidates.shape == (2, 3, 6)
    np.testing.assert_allclose(candidates[:, 0], [[10, 10, 60, 60, 0.9, 1]] * 2, atol=1e-6)


def test_onnxruntime_thread_count(serve: Make, tmp_path: Path) -> None:
    threads = []
    for count in (1, 4):
        instance = "instance_group [ { kind: KIND_CPU count: 1 } ]"
        (tmp_path / "tiny/config.pbtxt").unlink(missing_ok=True)
        server = serve(f"{ONNX_MODEL} {instance} {parameters(intra_op_thread_count=str(count))}")
        server.start()
        (stub,) = server.stub_pids()
        threads.append(len(list(Path(f"/proc/{stub}/task").iterdir())))
        server.stop()
    assert threads[1] - threads[0] == 3  # one works in the caller's thread


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (parameters(execution_mode="7"), "execution_mode must be one of 0, 1, got 7"),
        (parameters(intra_op_thread_count="many"), "many"),
        ("optimization { graph { level: 9 } }", "optimization.graph.level must be one of"),
        ('default_model_filename: "other.onnx"', "there is no model file"),
    ],
)
def test_onnxruntime_wrong_settings(serve: Make, settings: str, message: str) -> None:
    with pytest.raises(ServerError, match=message):
        serve(ONNX_MODEL + settings).start()


@pytest.mark.parametrize(
    "settings",
    [
        "",
        parameters(HINT_BF16="YES", NUM_STREAMS="1", PERFORMANCE_HINT="latency"),
        parameters(INFERENCE_NUM_THREADS="2", NUM_STREAMS="AUTO"),
    ],
)
def test_openvino_settings(serve: Make, settings: str) -> None:
    pytest.importorskip("openvino")
    server = serve(OPENVINO_MODEL + settings)
    server.start()
    for batch in (1, 3):
        images = np.zeros((batch, 96, 96, 3), np.uint8)
        candidates = infer(server, "tiny", "images", images, "UINT8").as_numpy("candidates")
        assert candidates.shape == (batch, 3, 6)
        np.testing.assert_allclose(candidates[:, 0], [[10, 10, 60, 60, 0.9, 1]] * batch, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (parameters(HINT_BF16="maybe"), "HINT_BF16 must be one of YES, got MAYBE"),
        (parameters(NUM_STREAMS="-1"), "NUM_STREAMS must be one of AUTO, NUMA, a number, got -1"),
        (parameters(INFERENCE_NUM_THREADS="all"), "must be a non-negative number, got ALL"),
        (parameters(PERFORMANCE_HINT="fast"), "PERFORMANCE_HINT must be one of LATENCY, THROUGH"),
        ("max_batch_size: 4", "takes batches of exactly that size"),
    ],
)
def test_openvino_wrong_settings(serve: Make, settings: str, message: str) -> None:
    pytest.importorskip("openvino")
    config = OPENVINO_MODEL + settings
    if "max_batch_size" in settings:
        config = config.replace("-1, ", "")
    with pytest.raises(ServerError, match=message):
        serve(config).start()


@pytest.mark.parametrize(
    "settings",
    [
        {"resize": "letterbox"},
        {"resize": "letterbox", "anchor": "top-left", "pad_value": "0"},
        {"resize": "stretch"},
    ],
    ids=str,
)
def test_preprocess_settings(serve: Make, settings: dict[str, str]) -> None:
    server = serve(PREPROCESS_MODEL + parameters(**settings))
    server.start()
    images = list(odd_images().values())[:8]
    batch = np.array(images, np.object_).reshape(-1, 1)
    result = infer(server, "fit", "IMAGE", batch, "BYTES")
    expected = np.empty((len(images), 96, 160, 3), np.uint8)
    fit = PreprocessSettings.from_parameters(settings, width=160, height=96)
    geometry = [
        preprocess(image, fit, out).values for image, out in zip(images, expected, strict=True)
    ]
    np.testing.assert_array_equal(result.as_numpy("images"), expected)
    np.testing.assert_array_equal(result.as_numpy("geometry"), geometry)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize": "squash"}, "resize must be 'letterbox' or 'stretch', got 'squash'"),
        ({"max_pixel": "5"}, "unknown parameter 'max_pixel'"),
    ],
)
def test_preprocess_wrong_settings(serve: Make, settings: dict[str, str], message: str) -> None:
    with pytest.raises(ServerError, match=message):
        serve(PREPROCESS_MODEL + parameters(**settings)).start()


def test_limits_of_the_config(serve: Make) -> None:
    server = serve(PREPROCESS_MODEL + parameters(max_bytes="50000", max_pixels="100000"))
    server.start()
    images = odd_images()
    for name, message in (
        ("as shipped, PNG", "bytes; the limit is 50,000"),
        ("large JPEG", "the limit is"),
        ("chelsea, JPEG", "135,300 pixels; the limit is 100,000"),
    ):
        batch = np.array([[images[name]]], np.object_)
        with pytest.raises(triton_grpc.InferenceServerException, match=message):
            infer(server, "fit", "IMAGE", batch, "BYTES")
