"""The command optimize: its steps, what it says of them, and what it refuses."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import optimize
from contract import DetectorInfo
from import_detector import ImportOptions, fold
from optimization import OptimizationError
from optimization.cleanup import clean
from optimization.fp16 import to_float16
from optimization.network import Network
from optimization.post_training import Int8Options, to_int8
from tests.images import encode
from tests.models import write_detector
from tests.unit.test_import_detector import raw_ssd

SIZE_WH = (24, 20)  # of `raw_ssd`


def detector() -> onnx.ModelProto:
    return fold(raw_ssd(columns=6), ImportOptions(family="ssd")).model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(detector(), path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(20):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), np.uint8)
        (folder / f"{index:02}.png").write_bytes(encode(Image.fromarray(pixels), "PNG"))
    return folder


def candidates(path_or_model: Path | onnx.ModelProto) -> npt.NDArray[np.float32]:
    source = (
        str(path_or_model) if isinstance(path_or_model, Path) else path_or_model.SerializeToString()
    )
    images = np.random.default_rng(5).integers(0, 256, (4, *SIZE_WH[::-1], 3), np.uint8)
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images})
    return np.asarray(found)


def run(*arguments: object) -> int:
    return optimize.main([str(argument) for argument in arguments])


def test_clean_changes_nothing_but_the_graph(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wasteful = onnx.load(model)  # an Identity, a dead node and two equal ones
    last = wasteful.graph.node[-1]
    last.output[0] = "before"
    twice = [helper.make_node("Abs", ["images"], [name], name=name) for name in ("dead", "too")]
    identity = helper.make_node("Identity", ["before"], ["candidates"], name="end")
    wasteful.graph.node.extend([*twice, identity])
    onnx.save(wasteful, model)
    assert run(model, "-o", tmp_path / "out.onnx", "--clean") == 0
    cleaned = onnx.load(tmp_path / "out.onnx")
    assert not {"Identity", "Abs"} & {node.op_type for node in cleaned.graph.node}
    assert {opset.domain for opset in cleaned.opset_import} == {""}
    assert DetectorInfo.of(cleaned) == DetectorInfo.of(wasteful)
    np.testing.assert_array_equal(candidates(cleaned), candidates(wasteful))
    before, after = len(wasteful.graph.node), len(cleaned.graph.node)
    assert f"clean: {before} to {after} nodes" in capsys.readouterr().out


def test_float16_ends_before_decoding(model: Path, tmp_path: Path) -> None:
    assert run(model, "-o", tmp_path / "out.onnx", "--fp16") == 0
    half = onnx.load(tmp_path / "out.onnx")
    assert DetectorInfo.of(half).variant == "fp16"
    types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    for conv in (node for node in half.graph.node if node.op_type == "Conv"):
        assert [types[name] for name in conv.input[1:]] == [TensorProto.FLOAT16] * 2
    inferred = onnx.shape_inference.infer_shapes(half, strict_mode=True)
    kinds = {
        info.name: info.type.tensor_type.elem_type
        for info in (*inferred.graph.value_info, *inferred.graph.output)
    }
    body = Network(half).body()
    late = [n for n in half.graph.node if n.output[0] not in body and n.op_type != "Cast"]
    assert len(late) > 20
    assert not any(kinds[name] == TensorProto.FLOAT16 for node in late for name in node.output)
    wanted, found = candidates(model), candidates(half)
    np.testing.assert_allclose(found[..., 4], wanted[..., 4], atol=5e-3)


def test_float16_keeps_what_another_node_reads_in_float32() -> None:
    source = detector()
    conv = next(node for node in source.graph.node if node.op_type == "Conv")
    weight = next(t for t in source.graph.initializer if t.name == conv.input[1])
    shared = numpy_helper.to_array(weight)
    half = to_float16(source)
    kept = {t.name: numpy_helper.to_array(t) for t in half.graph.initializer}
    assert weight.name not in kept  # nothing reads it any more
    np.testing.assert_array_equal(kept[f"{weight.name}/fp16"], shared.astype(np.float16))
    assert numpy_helper.to_array(weight).dtype == np.float32  # the source is not changed


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_int8_is_measured_and_told(
    model: Path, photos: Path, tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if target == "openvino":
        pytest.importorskip("openvino")
    table = tmp_path / "layers.json"
    arguments = ("--int8", "--calibration", photos, "--calibration-images", 4, "--max-drop", 1)
    more = ("--target", target, "--sensitivity", table)
    assert run(model, "-o", tmp_path / "out.onnx", *arguments, *more) == 0
    out = capsys.readouterr().out
    assert "calibrated on 4 images by mse" in out
    assert "measured without labels, on 16 images not calibrated with" in out
    assert "6 of 6 convolutions in int8" in out
    quantised = onnx.load(tmp_path / "out.onnx")
    suffix = "" if target == "onnxruntime" else f"-{target}"
    assert DetectorInfo.of(quantised).variant == f"int8{suffix}"
    np.testing.assert_allclose(
        candidates(quantised)[..., :20, 4], candidates(model)[..., :20, 4], atol=0.1
    )
    told = json.loads(table.read_text())
    assert told["measure"] == "agreement"
    assert told["reference"] > 0.9
    assert told["accuracy_by_float_layers"] == {"0": told["accuracy"]}
    noise = [layer["noise"] for layer in told["layers"]]
    assert len(noise) == 6
    assert noise == sorted(noise, reverse=True)


def test_layers_stay_in_float_until_enough_is_kept(photos: Path) -> None:
    options = Int8Options(calibration=photos, images=4, max_drop=1.0)
    everything = to_int8(detector(), options)
    assert everything.float_layers == frozenset()
    lost = everything.reference - everything.accuracy
    assert lost > 0.005  # noise on small random logits
    stricter = Int8Options(calibration=photos, images=4, max_drop=lost * 0.9)
    result = to_int8(detector(), stricter)
    assert result.float_layers
    assert result.reference - result.accuracy <= lost * 0.9
    worst = {layer.layer for layer in result.ranked[: len(result.float_layers)]}
    assert result.float_layers == worst


def test_steps_combine_and_the_variant_tells_them(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--clean", "--prune", "l1:0.1", "--int8", "--calibration", photos)
    assert run(model, "-o", tmp_path / "out.onnx", *arguments, "--max-drop", "1") == 0
    assert DetectorInfo.of(onnx.load(tmp_path / "out.onnx")).variant == "pruned-l1:0.1+int8"
    out = capsys.readouterr().out
    assert "no runtime runs it faster" in out
    order = [out.index(step) for step in ("clean:", "prune l1:0.1:", "int8:", "wrote")]
    assert order == sorted(order)


def test_a_pruning_that_is_not_possible_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, "-o", tmp_path / "out.onnx", "--prune", "channels:0.3") == 1
    assert "error: the model has no channels that can be removed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage", "cannot be read as an ONNX model"),
        (raw_ssd().SerializeToString(), "which scripts/import_detector.py makes"),
    ],
)
def test_what_is_no_detector_is_one_line(
    tmp_path: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    assert run(tmp_path / "bad.onnx", "-o", tmp_path / "out.onnx", "--fp16") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out.onnx").exists()


def test_images_that_do_not_serve_are_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (model, "-o", tmp_path / "out.onnx", "--int8", "--calibration")
    assert run(*arguments, tmp_path / "none") == 1
    assert "there is no folder of images" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert run(*arguments, tmp_path / "empty") == 1
    assert "holds no images" in capsys.readouterr().err


def test_a_detector_without_convolutions_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_detector(tmp_path / "constant.onnx", rows=np.zeros((300, 6), np.float32))
    for step in (["--fp16"], ["--int8", "--calibration", photos]):
        assert run(path, "-o", tmp_path / "out.onnx", *step) == 1
        assert "no" in (error := capsys.readouterr().err)
        assert "convolutions" in error


def test_an_int8_detector_is_not_optimised_again(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    int8 = ("--int8", "--calibration", photos, "--max-drop", "1")
    assert run(model, "-o", tmp_path / "int8.onnx", *int8) == 0
    for step in (["--fp16"], int8):
        assert run(tmp_path / "int8.onnx", "-o", tmp_path / "out.onnx", *step) == 1
    error = capsys.readouterr().err
    assert "cannot be float16 as well" in error
    assert "quantised already" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do"),
        (["--fp16", "--int8", "--calibration", "x"], "exclude each other"),
        (["--int8"], "--int8 needs --calibration"),
        (["--clean", "--max-drop", "0.1"], "--max-drop is for --int8"),
        (["--clean", "--sensitivity", "x"], "--sensitivity is for --int8"),
        (["--int8", "--calibration", "x", "--limit", "3"], "--limit needs --images"),
        (["--int8", "--calibration", "x", "--max-drop", "2"], "between 0 and 1"),
        (["--int8", "--calibration", "x", "--calibration-images", "0"], "at least 1"),
        (["--int8", "--calibration", "x", "--target", "tpu"], "invalid choice"),
        (["--prune", "l1:1.5"], "none of l1:0.5"),
        (["--prune", "half"], "none of l1:0.5"),
        (["--prune", "4:8"], "none of l1:0.5"),
    ],
)
def test_wrong_use_is_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("model.onnx", "-o", "out.onnx", *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "tpu"}, "unknown target 'tpu'"),
        ({"method": "guess"}, "unknown method 'guess'"),
        ({"max_drop": -0.1}, "max_drop must be between 0 and 1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptimizationError, match=message):
        Int8Options(calibration=Path("x"), **options)


def test_without_onnxslim_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnxslim":
            raise ModuleNotFoundError("no module", name=name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OptimizationError, match=r"detserve\[optimize\]"):
        clean(detector())
