"""The configurations of the engines and what can be asked of them; TensorRT plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format

from assembly import Serving, install, list_ensembles
from contract import DetectorInfo
from detserve.repository import DetectorRepository, RepositoryError
from plan import PlanOptions, PlanRecord
from plan.record import file_sha256, record_path
from tests.models import write_detector

GPU = "count: 2 kind: KIND_GPU"


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    return write_detector(tmp_path / "model.onnx", rows=np.zeros((300, 6), np.float32))


def write_plan(
    path: Path, *, batch: tuple[int, int, int] = (1, 4, 8), tag: bytes = b"ftrt"
) -> Path:
    """The header of a plan, and its record."""
    path.write_bytes(tag + bytes(20) + bytes([10, 5, 0, 18]) + b"kernels")
    record = PlanRecord(
        plan_sha256=file_sha256(path),
        module="tensorrt",
        version="10.5.0.18",
        model="model.onnx",
        model_sha256="0" * 64,
        detector=DetectorInfo(input_size_wh=(96, 96), labels=("cup", "cat"), family="yolox"),
        precision="fp16",
        options=PlanOptions(batch=batch).to_json(),
        gpu=None,
    )
    record_path(path).write_text(record.to_json())
    return path


def detector_of(root: Path) -> str:
    return text_format.MessageToString(DetectorRepository(root).detector, as_one_line=True)


def batches_of(root: Path) -> list[int]:
    return [config.max_batch_size for config in DetectorRepository(root).configs]


@pytest.mark.parametrize(
    ("serving", "there", "not_there"),
    [
        (Serving(), "instance_group { count: 2 } preferred_batch_size: 1", "max_queue_delay"),
        (Serving(kind="cpu", instances=3), "instance_group { count: 3 kind: KIND_CPU }", "delay"),
        (Serving(kind="gpu"), f"max_queue_size: 128 instance_group {{ {GPU} }}", "preferred"),
        (Serving(kind="gpu", dynamic_batching="off"), f"{GPU} preferred_batch_size: 1", "delay"),
        (Serving(dynamic_batching=0), "priority_levels: 2 max_queue_size: 128", "max_queue_delay"),
        (Serving(dynamic_batching=200), "max_queue_delay_microseconds: 200", "KIND"),
    ],
    ids=str,
)
def test_onnxruntime(
    tmp_path: Path, onnx_file: Path, serving: Serving, there: str, not_there: str
) -> None:
    install(onnx_file, tmp_path / "root", serving=serving)
    config = detector_of(tmp_path / "root")
    assert sorted(set(there.split()) - set(config.split())) == []
    assert not_there not in config
    assert batches_of(tmp_path / "root") == [16] * 4


def test_settings_of_an_ensemble_that_is_there(tmp_path: Path, onnx_file: Path) -> None:
    root = tmp_path / "root"
    install(onnx_file, root, serving=Serving(dynamic_batching=100, max_batch=4))
    assert batches_of(root) == [4] * 4
    install(onnx_file, root, serving=Serving(max_batch=32))
    assert batches_of(root) == [32] * 4
    assert "max_queue_delay_microseconds: 100" in detector_of(root)
    install(onnx_file, root, serving=Serving(dynamic_batching="off"))
    assert "preferred_batch_size: 1 " in detector_of(root)
    assert "max_queue_delay" not in detector_of(root)
    assert batches_of(root) == [32] * 4


def test_openvino_takes_batches_of_any_size(tmp_path: Path, onnx_file: Path) -> None:
    install(onnx_file, tmp_path / "root", engine="openvino", serving=Serving(max_batch=4))
    read = DetectorRepository(tmp_path / "root")
    assert batches_of(tmp_path / "root") == [4, 0, 4, 4]
    assert list(read.detector.input[0].dims) == [-1, 96, 96, 3]
    assert list(read.detector.output[0].dims) == [-1, 300, 6]
    assert read.detector.default_model_filename == read.file_name() == "model.onnx"
    assert read.detector_parameters() == {"NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY"}
    assert "KIND_CPU" in detector_of(tmp_path / "root")
    assert read.detector.dynamic_batching.default_queue_policy.max_queue_size == 64
    assert not read.detector.dynamic_batching.preferred_batch_size


@pytest.mark.parametrize("batch", [(1, 4, 8), (1, 1, 3), (1, 1, 1)], ids=str)
def test_tensorrt(tmp_path: Path, batch: tuple[int, int, int]) -> None:
    root, plan = tmp_path / "root", write_plan(tmp_path / "model.plan", batch=batch)
    done = install(plan, root, engine="tensorrt")
    assert done.path == root / "detector/1/model.plan"
    assert PlanRecord.read(done.path).batch == batch
    assert batches_of(root) == [batch[2]] * 4
    read = DetectorRepository(root)
    assert (read.backend, read.file_name(), read.versions()) == ("tensorrt", "model.plan", [1])
    assert f"instance_group {{ {GPU} }}" in detector_of(root)
    preferred = read.detector.dynamic_batching.preferred_batch_size
    assert list(preferred) == {8: [4, 8], 3: [2, 3], 1: [1]}[batch[2]]
    assert read.labels() == ("cup", "cat")
    (listed,) = list_ensembles(root)
    assert (listed.engine, listed.served) == ("tensorrt", True)
    assert install(plan, root).version == 2


def test_a_plan_for_a_smaller_batch(tmp_path: Path) -> None:
    root = tmp_path / "root"
    install(write_plan(tmp_path / "first.plan"), root, engine="tensorrt")
    smaller = write_plan(tmp_path / "smaller.plan", batch=(1, 2, 4))
    with pytest.raises(RepositoryError, match="greatest batch: 4; the ensemble's: 8"):
        install(smaller, root)
    assert install(smaller, root, serving=Serving(max_batch=4)).version == 2
    assert batches_of(root) == [4] * 4


def test_a_plan_without_a_record(tmp_path: Path, onnx_file: Path) -> None:
    plan = write_plan(tmp_path / "model.plan")
    record_path(plan).unlink()
    with pytest.raises(RepositoryError, match=r"cannot read .*model\.plan\.json"):
        install(plan, tmp_path / "root", engine="tensorrt")
    install(plan, tmp_path / "root", engine="tensorrt", source=onnx_file)
    assert DetectorRepository(tmp_path / "root").preprocess_settings().width == 96
    assert not record_path(tmp_path / "root/detector/1/model.plan").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "openvino", "serving": Serving(kind="gpu")}, "openvino runs on --kind cpu"),
        ({"engine": "openvino", "serving": Serving(dynamic_batching=0)}, "does not batch requests"),
        ({"keep": 0}, "at least one version must be kept"),
        ({"engine": "tensorrt"}, "serves plans: build one with"),
    ],
    ids=str,
)
def test_settings_that_there_are_not(
    tmp_path: Path, onnx_file: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RepositoryError, match=message):
        install(onnx_file, tmp_path / "root", **options)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("name", ["instances", "max_batch"])
def test_numbers_that_are_too_small(name: str) -> None:
    option = name.replace("_", "-")
    with pytest.raises(RepositoryError, match=f"--{option} must be at least 1, got 0"):
        Serving(**{name: 0})  # type: ignore[arg-type]
    with pytest.raises(RepositoryError, match="--dynamic-batching must be at least 0, got -1"):
        Serving(dynamic_batching=-1)


@pytest.mark.parametrize(
    ("plan", "options", "message"),
    [
        (
            {"tag": b"vtrt"},
            {},
            r"built by TensorRT-RTX 10\.5\.0\.18, whose plans Triton cannot load",
        ),
        ({"tag": b"GGUF"}, {}, "is no TensorRT plan"),
        ({"batch": (2, 4, 8)}, {}, "refuses single images: its profile begins at 2"),
        ({}, {"serving": Serving(max_batch=16)}, "profile ends at batches of 8"),
        ({}, {"serving": Serving(kind="cpu")}, "tensorrt runs on --kind gpu, not on cpu"),
        ({}, {"engine": "onnxruntime"}, "is a TensorRT plan: serve it with --engine tensorrt"),
    ],
    ids=str,
)
def test_plans_that_cannot_be_served(
    tmp_path: Path, plan: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    path = write_plan(tmp_path / "model.plan", **plan)
    with pytest.raises(RepositoryError, match=message):
        install(path, tmp_path / "root", **{"engine": "tensorrt", **options})
    assert not (tmp_path / "root").exists()
