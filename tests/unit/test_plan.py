"""What building a plan needs no TensorRT for: options, names, records, configurations, errors."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from tritonclient.grpc.model_config_pb2 import ModelConfig

import build_plan
from contract import DetectorInfo
from detserve.engines import EngineError, PlanHeader, read_plan_header
from plan.builder import Tensor
from plan.errors import PlanError, explain
from plan.model import precision_of, read_detector
from plan.options import PlanOptions, output_error
from plan.record import PlanRecord, file_sha256, record_path
from plan.serving import check_config, config_of, differences
from tests.models import write_detector

TENSORS = (
    Tensor("images", True, "UINT8", (-1, 96, 96, 3)),
    Tensor("candidates", False, "FLOAT", (-1, 300, 6)),
)
CONFIG = """
name: "detector" backend: "tensorrt" max_batch_size: 8
input { name: "images" data_type: TYPE_UINT8 dims: [ 96, 96, 3 ] }
output { name: "candidates" data_type: TYPE_FP32 dims: [ 300, 6 ] }
"""


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    """A detector of the contract: 300 candidates."""
    path = write_detector(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 300
    onnx.save(model, path)
    return path


def write_plan(
    path: Path, tag: bytes = b"ftrt", version: tuple[int, ...] = (11, 1, 0, 106)
) -> Path:
    path.write_bytes(tag + bytes(20) + bytes(version) + bytes(100))
    return path


@pytest.mark.parametrize(
    ("tag", "words"), [(b"ftrt", "TensorRT 11.1.0.106"), (b"vtrt", "TensorRT-RTX 11.1.0.106")]
)
def test_a_header_names_library_and_version(tmp_path: Path, tag: bytes, words: str) -> None:
    assert str(read_plan_header(write_plan(tmp_path / "model.plan", tag))) == words


@pytest.mark.parametrize("content", [b"", b"ftrt", b"\x08\x08pytorch" + bytes(100)])
def test_what_is_no_plan_is_told_from_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.plan"
    path.write_bytes(content)
    with pytest.raises(EngineError, match="is no TensorRT plan: it begins with"):
        read_plan_header(path)
    path.unlink()
    with pytest.raises(EngineError, match="No such file"):
        read_plan_header(path)


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("11.1.0.106", True),
        ("11.1.0", True),  # some packages leave the build number out
        ("11.1.0.107", False),
        ("11.1.1.106", False),
        ("10.5.0.18", False),
    ],
)
def test_a_plan_is_of_one_version(version: str, fits: bool) -> None:
    assert PlanHeader("tensorrt", (11, 1, 0, 106)).built_by(version) == fits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": (4, 2, 8)}, "not decrease"),
        ({"batch": (0, 1, 8)}, "1 or more"),
        ({"batch": (1, 9, 8)}, "got 1 9 8"),
        ({"workspace_mib": 0}, "1 MiB or more"),
        ({"optimization_level": 6}, "0 to 5"),
        ({"hardware_compatibility": "pascal"}, "ampere-plus"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        PlanOptions(**changes).check("tensorrt")


@pytest.mark.parametrize(
    "changes",
    [
        {"timing_cache": Path("timings")},
        {"hardware_compatibility": "ampere-plus"},
        {"version_compatible": True},
    ],
)
def test_what_rtx_ignores_is_refused_for_it_alone(changes: dict[str, Any]) -> None:
    PlanOptions(**changes).check("tensorrt")
    with pytest.raises(PlanError, match="TensorRT-RTX has no --"):
        PlanOptions(**changes).check("tensorrt_rtx")


def test_the_two_libraries_never_write_the_same_name() -> None:
    assert output_error(Path("model.plan"), "tensorrt") is None
    assert output_error(Path("model.rtx"), "tensorrt_rtx") is None
    assert "has to end in .rtx" in (output_error(Path("model.plan"), "tensorrt_rtx") or "")
    assert "has to end in .plan" in (output_error(Path("model.rtx"), "tensorrt") or "")


def test_a_configuration_that_serves_the_plan_has_no_differences() -> None:
    config = text_format.Parse(CONFIG, ModelConfig())
    assert differences(config, TENSORS, (1, 4, 8), "model.plan") == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("UINT8", "FP32", "input images is TYPE_FP32; in the plan TYPE_UINT8"),
        ("TYPE_FP32", "TYPE_FP16", "output candidates is TYPE_FP16; in the plan TYPE_FP32"),
        ("96, 96, 3", "3, 96, 96", "input images has dims [3, 96, 96]; in the plan [96, 96, 3]"),
        ("300, 6", "100, 6", "output candidates has dims [100, 6]; in the plan [300, 6]"),
        ('"tensorrt"', '"onnxruntime"', 'it is for onnxruntime; a plan needs backend: "tensorrt"'),
        ("size: 8", "size: 16", "max_batch_size is 16; the plan's profile goes from 1 to 8"),
        ("size: 8", "size: 0", "max_batch_size is 0; the plan's profile goes from 1 to 8"),
        (
            "size: 8",
            'size: 8 default_model_filename: "a.plan"',
            "it loads a.plan; this is model.plan",
        ),
    ],
)
def test_each_difference_is_named_with_both_sides(old: str, new: str, said: str) -> None:
    config = text_format.Parse(CONFIG.replace(old, new, 1), ModelConfig())
    assert differences(config, TENSORS, (1, 4, 8), "model.plan") == [said]


def test_names_are_compared_and_a_least_batch_of_more_than_one() -> None:
    config = text_format.Parse(CONFIG.replace('"images"', '"image"'), ModelConfig())
    assert differences(config, TENSORS, (2, 4, 8), "model.plan") == [
        "requests of one image are refused: the plan's profile begins at 2",
        "input image is not in the plan",
        "input images of the plan is missing",
    ]


def test_a_configuration_is_read_and_judged(tmp_path: Path) -> None:
    path = tmp_path / "detector" / "config.pbtxt"
    with pytest.raises(PlanError, match="cannot read"):
        check_config(path, TENSORS, (1, 4, 8), "model.plan")
    path.parent.mkdir()
    path.write_text(CONFIG)
    check_config(path, TENSORS, (1, 4, 8), "model.plan")
    path.write_text(CONFIG.replace("UINT8", "FP32"))
    with pytest.raises(PlanError, match="does not serve this plan:\n  input images is TYPE_FP32"):
        check_config(path, TENSORS, (1, 4, 8), "model.plan")
    with pytest.raises(PlanError, match=r"name a config\.pbtxt"):
        check_config(path.parent, TENSORS, (1, 4, 8), "model.plan")
    assert config_of(path.parent / "2" / "model.plan") == path
    assert config_of(path.parent / "new" / "model.plan") is None


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("input has type Int32 but must have type FP8", "bias is quantised"),
        ("Assertion failed: shiftIsAllZeros(zeroPoint)", "quantised asymmetrically"),
        ('creator && "Plugin not found, are the', "no such operator"),
        ("Error Code 2: OutOfMemory (Requested", "raise --workspace-mb"),
        ("Unable to load library: libnvinfer_lean.so.1", "lean runtime"),
        ("something new", "cannot be built\n  TensorRT says: something new"),
    ],
)
def test_tensorrts_words_are_kept_and_explained(said: str, cause: str) -> None:
    noise = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35)"
    error = str(explain("it cannot be built", [said + "\n" + noise, noise, said]))
    assert cause in error
    assert error.count(said) == 1
    assert "cudaError" not in error
    assert "cudaError" in str(explain("it cannot be built", [noise]))  # unless nothing else is left


Change = Callable[[onnx.ModelProto], None]


def fix_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def take_floats(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def take_any_height(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "H"


def use_a_future_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def drop_external_data(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[-1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fix_batch, r"\[1, 96, 96, 3\].*Its batch is fixed to 1"),
        (take_floats, r"images FLOAT \[N, 96, 96, 3\].*a detector has images UINT8"),
        (take_any_height, r"\[N, H, 96, 3\]"),
        (use_a_future_opset, "opset 99; 9 to"),
        (drop_external_data, r"keeps its weights in weights\.bin"),
    ],
)
def test_a_model_that_a_plan_cannot_be_of_is_refused(
    detector: Path, change: Change, message: str
) -> None:
    model, info = read_detector(detector)
    assert info.input_size_wh == (96, 96)
    change(model)
    onnx.save(model, detector)
    with pytest.raises(PlanError, match=message):
        read_detector(detector)


def test_the_precision_is_the_files_own(detector: Path) -> None:
    model, _ = read_detector(detector)
    assert precision_of(model) == "fp32"
    model.graph.initializer.append(helper.make_tensor("half", TensorProto.FLOAT16, [1], [1.0]))
    assert precision_of(model) == "fp16"
    model.graph.node.append(helper.make_node("QuantizeLinear", ["x", "s"], ["q"]))
    assert precision_of(model) == "int8+fp16"


@pytest.fixture
def record(tmp_path: Path) -> PlanRecord:
    plan = write_plan(tmp_path / "model.plan")
    record = PlanRecord(
        plan_sha256=file_sha256(plan),
        module="tensorrt",
        version="11.1.0.106",
        model="model.onnx",
        model_sha256="0" * 64,
        detector=DetectorInfo(input_size_wh=(416, 320), family="yolox", labels=("a", "b")),
        precision="int8",
        options=PlanOptions(batch=(1, 2, 16), sparsity=True).to_json(),
        gpu={"name": "NVIDIA T4", "compute_capability": "7.5"},
    )
    record_path(plan).write_text(record.to_json())
    return record


def test_a_record_is_read_back_as_it_was(record: PlanRecord, tmp_path: Path) -> None:
    read = PlanRecord.read(tmp_path / "model.plan")
    assert read == record
    assert read.batch == (1, 2, 16)
    assert read.detector.preprocess_settings().width == 416


@pytest.mark.usefixtures("record")
def test_a_record_is_of_one_plan_alone(tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "model.plan", version=(10, 5, 0, 18))
    with pytest.raises(PlanError, match="of another plan"):
        PlanRecord.read(plan)
    for text in ("{", "[]", "{}", '{"format": 2}', '{"format": 1, "detector": {}}'):
        record_path(plan).write_text(text)
        with pytest.raises(PlanError, match="is no record of a plan"):
            PlanRecord.read(plan)
    record_path(plan).unlink()
    with pytest.raises(PlanError, match=r"scripts/build_plan\.py writes"):
        PlanRecord.read(plan)


def test_a_record_tells_every_option_but_where_the_timings_lie() -> None:
    options = PlanOptions(timing_cache=Path("timings")).to_json()
    names = {field.name for field in dataclasses.fields(PlanOptions)} - {"timing_cache"}
    assert set(json.loads(json.dumps(options))) == names


def test_without_tensorrt_the_command_says_where_it_is(
    detector: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert build_plan.main([str(detector)]) == 1
    captured = capsys.readouterr()
    assert "docker compose run plan" in captured.err
    assert captured.out == ""
    assert not detector.with_suffix(".plan").exists()


def test_a_wrong_name_is_told_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(tmp_path / "none.onnx"), "--module", "tensorrt_rtx"]
    assert build_plan.main([*command, "-o", str(tmp_path / "model.plan")]) == 1
    assert "model.plan is no name for what TensorRT-RTX builds" in capsys.readouterr().err
