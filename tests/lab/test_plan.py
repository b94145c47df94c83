"""The builder of plans against TensorRT-RTX, which parses and builds without a GPU.

What that shows is that the parser and the builder take a model, and that what they refuse is told
with its cause. It says nothing of speed or of results: nothing built here can run here.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import build_plan
from contract import DetectorInfo
from detserve.engines import read_plan_header
from plan import PlanBuilder, PlanError, PlanOptions, PlanRecord
from plan.builder import Tensor, _store_timing_cache, load_module
from plan.progress import make_progress
from tests.lab.plan_models import to_fp16, to_int8, write_small_detector

trt = pytest.importorskip("tensorrt_rtx")

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_MODEL = ROOT / "model_repository/detector/1/model.onnx"
YOLOX = ROOT.parent / "shared/models/yolox_nano.onnx"
CONFIG = """
name: "detector" backend: "tensorrt" max_batch_size: 8
input { name: "images" data_type: TYPE_UINT8 dims: [ 15, 20, 3 ] }
output { name: "candidates" data_type: TYPE_FP32 dims: [ 300, 6 ] }
"""
Make = Callable[[Path, Path], Path]


def as_it_is(model: Path, _: Path) -> Path:
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The models that plans have to be built of, as far as they are here."""
    models = {"default": DEFAULT_MODEL}
    if YOLOX.is_file():
        import_detector = pytest.importorskip("import_detector")
        families = pytest.importorskip("families")
        if "yolox" in families.FAMILIES:
            folder = tmp_path_factory.mktemp("yolox")
            models["yolox_nano"] = folder / "model.onnx"
            assert (
                import_detector.main(
                    [str(YOLOX), "--family", "yolox", "-o", str(models["yolox_nano"])]
                )
                == 0
            )
    return models


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_small_detector(tmp_path / "model.onnx")


def precision_in_network(model: Path) -> str:
    """The narrowest type that TensorRT itself computes in, by what its layers give."""
    builder = PlanBuilder("tensorrt_rtx")
    builder.parse(model)
    network = builder._network
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    kinds = {layer.get_output(0).dtype for layer in layers}
    if trt.DataType.INT8 in kinds:
        return "int8"
    return "fp16" if trt.DataType.HALF in kinds else "fp32"


@pytest.mark.parametrize("name", ["default", "yolox_nano"])
@pytest.mark.parametrize(
    ("precision", "make"), [("fp32", as_it_is), ("fp16", to_fp16), ("int8", to_int8)]
)
def test_every_precision_builds_with_its_record(
    models: dict[str, Path], name: str, precision: str, make: Make, tmp_path: Path
) -> None:
    if name not in models or not models[name].is_file():
        pytest.skip(f"the model {name} is not here")
    model = make(models[name], tmp_path / "model.onnx")
    output = tmp_path / "model.rtx"
    arguments = [str(model), "--module", "tensorrt_rtx", "--batch", "1", "4", "8"]
    assert build_plan.main([*arguments, "-o", str(output)]) == 0

    header = read_plan_header(output)
    assert header.module == "tensorrt_rtx"
    assert header.built_by(trt.__version__)
    record = PlanRecord.read(output)
    assert (record.precision, record.batch, record.version) == (
        precision,
        (1, 4, 8),
        trt.__version__,
    )
    assert record.detector == DetectorInfo.of(onnx.load(model))
    assert sorted(path.name for path in tmp_path.glob("*.rtx*")) == ["model.rtx", "model.rtx.json"]
    assert precision_in_network(model) == precision


def test_networks_are_strongly_typed_and_told_as_they_are(small: Path) -> None:
    builder = PlanBuilder("tensorrt_rtx")
    assert builder.parse(small) == (
        Tensor("images", True, "UINT8", (-1, 15, 20, 3)),
        Tensor("candidates", False, "FLOAT", (-1, 300, 6)),
    )
    assert builder._network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def test_the_options_reach_the_builder(small: Path) -> None:
    builder = PlanBuilder("tensorrt_rtx")
    builder.parse(small)
    config = builder._builder.create_builder_config()
    builder._add_profile(config, (1, 2, 16))
    builder._apply(config, PlanOptions(workspace_mib=64, sparsity=True, optimization_level=2))
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20
    assert config.get_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    assert config.builder_optimization_level == 2
    assert config.num_optimization_profiles == 1


def test_a_timing_cache_is_written_and_read_again(small: Path, tmp_path: Path) -> None:
    """The calls only: TensorRT-RTX has them, deprecated, and keeps no timings."""
    cache = tmp_path / "caches" / "timings"
    for _ in range(2):
        builder = PlanBuilder("tensorrt_rtx")
        builder.parse(small)
        config = builder._builder.create_builder_config()
        with pytest.warns(DeprecationWarning, match="Timing cache"):
            builder._load_timing_cache(config, cache)
        with pytest.warns(DeprecationWarning, match="Timing cache"):
            _store_timing_cache(config, cache)
        assert cache.stat().st_size > 0
    assert [path.name for path in cache.parent.iterdir()] == ["timings"]


def custom_operator(path: Path) -> None:
    write_small_detector(path, "Shine", "my.operators")


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def missing(path: Path) -> None:
    path.unlink()


def fixed_batch(path: Path) -> None:
    model = onnx.load(path)
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)


def dynamic_height(path: Path) -> None:
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "H"
    onnx.save(model, path)


def float_input(path: Path) -> None:
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(model, path)


def future_opset(path: Path) -> None:
    model = onnx.load(path)
    model.opset_import[0].version = 99
    onnx.save(model, path)


def lost_weights(path: Path) -> None:
    model = onnx.load(path)
    place = "weights.bin"
    onnx.save(model, path, save_as_external_data=True, location=place, size_threshold=0)
    (path.parent / place).unlink()


def asymmetric(path: Path) -> None:
    to_int8(path, path, symmetric=False)


def unsigned(path: Path) -> None:
    to_int8(path, path, activations="uint8", symmetric=False)


def quantised_bias(path: Path) -> None:
    to_int8(path, path, quantize_bias=True)


@pytest.mark.parametrize(
    ("break_it", "messages"),
    [
        (custom_operator, ["node 3, Shine 'active'", "TensorRT has no such operator"]),
        (garbage, ["cannot be read as an ONNX model"]),
        (empty, ["is no ONNX model, or an empty one (0 bytes)"]),
        (truncated, ["cannot be read as an ONNX model", "only a part of one"]),
        (missing, ["cannot be read as an ONNX model", "No such file"]),
        (fixed_batch, ["[1, 15, 20, 3]", "Its batch is fixed to 1"]),
        (dynamic_height, ["[N, H, 20, 3]"]),
        (float_input, ["images FLOAT", "a detector has images UINT8"]),
        (future_opset, ["opset 99"]),
        (lost_weights, ["keeps its weights in weights.bin, which is not in"]),
        (asymmetric, ["QuantizeLinear 'planes_QuantizeLinear'", "quantised asymmetrically"]),
        (unsigned, ["QuantizeLinear 'features_QuantizeLinear'", "quantised asymmetrically"]),
        (quantised_bias, ["DequantizeLinear 'bias_DequantizeLinear'", "a bias is quantised"]),
    ],
)
def test_a_broken_model_ends_in_an_error_that_names_the_cause(
    small: Path,
    break_it: Callable[[Path], None],
    messages: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    break_it(small)
    assert build_plan.main([str(small), "--module", "tensorrt_rtx"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    for message in messages:
        assert message in captured.err
    assert "cudaError" not in captured.err  # that there is no GPU is not what is wrong
    assert captured.out == ""
    assert not list(small.parent.glob("*.rtx*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "4", "2", "8"], "not decrease, as 1 4 8 do; got 4 2 8"),
        (["--workspace-mb", "0"], "the workspace must be 1 MiB or more"),
        (["-o", "/proc/plans/model.rtx"], "cannot write /proc/plans/model.rtx"),
        (["-o", "{folder}/model.plan"], "model.plan is no name for what TensorRT-RTX builds"),
        (["--version-compatible"], "TensorRT-RTX has no --version-compatible"),
        (["--config", "{folder}/wrong_type/config.pbtxt"], "images is TYPE_FP32; in the plan TYPE"),
        (["--config", "{folder}/wrong_dims/config.pbtxt"], "dims [20, 15, 3]; in the plan [15, 20"),
        (["--config", "{folder}/wrong_batch/config.pbtxt"], "max_batch_size is 16; the plan's"),
        (["--config", "{folder}/none/config.pbtxt"], "none/config.pbtxt: No such file"),
    ],
)
def test_wrong_options_and_configurations_are_told(
    small: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, old, new in (
        ("wrong_type", "TYPE_UINT8", "TYPE_FP32"),
        ("wrong_dims", "15, 20", "20, 15"),
        ("wrong_batch", "size: 8", "size: 16"),
    ):
        (small.parent / name).mkdir()
        (small.parent / name / "config.pbtxt").write_text(CONFIG.replace(old, new))
    folder = str(small.parent)
    command = [str(small), "--module", "tensorrt_rtx"]
    command += [argument.replace("{folder}", folder) for argument in arguments]
    assert build_plan.main(command) == 1
    assert message in capsys.readouterr().err
    assert not list(small.parent.glob("*.rtx*"))


def test_a_configuration_that_fits_passes_and_nothing_is_built(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small.with_name("config.pbtxt")
    config.write_text(CONFIG)
    command = [str(small), "--module", "tensorrt_rtx", "--config", str(config), "--check-only"]
    assert build_plan.main(command) == 0
    assert capsys.readouterr().out.startswith("tensorrt_rtx takes ")
    assert not list(small.parent.glob("*.rtx*"))


def test_the_repository_beside_the_output_warns(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "detector/1").mkdir(parents=True)
    (tmp_path / "detector/config.pbtxt").write_text(CONFIG.replace("tensorrt", "onnxruntime"))
    output = tmp_path / "detector/1/model.rtx"
    assert build_plan.main([str(small), "--module", "tensorrt_rtx", "-o", str(output)]) == 0
    captured = capsys.readouterr()
    assert "warning: " in captured.err
    assert "it is for onnxruntime" in captured.err
    assert output.is_file()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (garbage, "this is no ONNX file, or only a part of one"),
        (empty, "gives an empty network (0 inputs, 0 outputs)"),
        (missing, "Input file cannot be found"),
        (lost_weights, "the weights lie in a file beside the model"),
    ],
)
def test_failures_that_do_not_raise_in_the_parser_become_errors(
    small: Path, break_it: Callable[[Path], None], message: str
) -> None:
    break_it(small)
    with pytest.raises(PlanError) as caught:
        PlanBuilder("tensorrt_rtx").parse(small)
    assert message in str(caught.value)


def test_a_profile_that_does_not_fit_becomes_an_error(small: Path) -> None:
    fixed_batch(small)
    builder = PlanBuilder("tensorrt_rtx")
    builder.parse(small)
    # Without a dynamic dimension there is nothing to profile: such a plan has that one batch.
    assert builder.build(PlanOptions())[:4] == b"vtrt"

    builder = PlanBuilder("tensorrt_rtx")
    builder.parse(write_small_detector(small))
    with pytest.raises(PlanError, match=r"profile's batches must not decrease"):
        builder._add_profile(builder._builder.create_builder_config(), (4, 2, 8))


def test_a_build_that_returns_nothing_becomes_an_error(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = PlanBuilder("tensorrt_rtx")
    builder.parse(small)
    monkeypatch.setattr(builder, "_add_profile", lambda *_: None)
    with pytest.raises(PlanError, match="dynamic dimension that no optimization profile covers"):
        builder.build(PlanOptions())

    dynamic_height(small)
    builder = PlanBuilder("tensorrt_rtx")
    builder.parse(small)
    with pytest.raises(PlanError, match="besides the batch all must be fixed"):
        builder.build(PlanOptions())


def test_two_builders_at_once_hear_each_their_own(small: Path, tmp_path: Path) -> None:
    """TensorRT keeps the first logger of a process: the second builder has to hear all the same."""
    first = PlanBuilder("tensorrt_rtx")
    first.parse(small)
    broken = write_small_detector(tmp_path / "broken.onnx")
    second = PlanBuilder("tensorrt_rtx")
    second.parse(broken)
    second._add_profile = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(PlanError, match=r"TensorRT says: .*no optimization profile"):
        second.build(PlanOptions())
    assert not [text for text in second.take_warnings() if "logger" in text]
    assert first.build(PlanOptions())[:4] == b"vtrt"


def test_too_little_workspace_is_told() -> None:
    if not DEFAULT_MODEL.is_file():
        pytest.skip("the default model is not here")
    builder = PlanBuilder("tensorrt_rtx")
    builder.parse(DEFAULT_MODEL)
    with pytest.raises(PlanError, match="raise --workspace-mb"):
        builder.build(PlanOptions(workspace_mib=1))


def test_ctrl_c_stops_a_build_and_leaves_nothing(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The signal comes within a step of TensorRT's, so surely during the build."""

    def interrupting(module: object, *, show: bool) -> object:
        progress = make_progress(module, show=show)
        step_complete = type(progress).step_complete

        def step(self: object, name: str, number: int) -> bool:
            os.kill(os.getpid(), signal.SIGINT)
            return bool(step_complete(self, name, number))

        monkeypatch.setattr(type(progress), "step_complete", step)
        return progress

    monkeypatch.setattr("plan.builder.make_progress", interrupting)
    before = signal.getsignal(signal.SIGINT)
    assert threading.current_thread() is threading.main_thread()
    assert build_plan.main([str(small), "--module", "tensorrt_rtx"]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopped" in capsys.readouterr().err
    assert not list(small.parent.glob("*.rtx*"))


def test_the_record_tells_the_options(small: Path) -> None:
    command = [str(small), "--module", "tensorrt_rtx", "--batch", "1", "1", "2", "--sparsity"]
    assert build_plan.main([*command, "--workspace-mb", "256"]) == 0
    record = json.loads(small.with_name("model.rtx.json").read_text())
    assert record["options"] == {
        "batch": [1, 1, 2],
        "workspace_mib": 256,
        "sparsity": True,
        "version_compatible": False,
        "hardware_compatibility": "none",
        "optimization_level": None,
    }


def test_a_missing_module_is_told() -> None:
    if not _has_tensorrt():
        with pytest.raises(PlanError, match="docker compose run plan"):
            load_module("tensorrt")


def _has_tensorrt() -> bool:
    try:
        load_module("tensorrt")
    except PlanError:
        return False
    return True
