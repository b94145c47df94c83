"""The command line of the evaluation: output, gates and their exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate as command
from tests.labelled_images import write_constant_detector, write_yolo

SCRIPT = Path(command.__file__)
ROWS = ((10, 10, 60, 60, 0.9, 1), (20, 20, 90, 90, 0.2, 0))
BOTH = [(1, 10.0, 10.0, 60.0, 60.0), (0, 20.0, 20.0, 90.0, 90.0)]
SCENE = {"a": BOTH, "b": BOTH}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_yolo(tmp_path / "data", SCENE)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_constant_detector(tmp_path / "model.onnx", ROWS, labels=("cat", "dog"))


def run(*arguments: object) -> int:
    return command.main([str(argument) for argument in arguments])


def test_the_table_and_the_json(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "new" / "result.json"
    assert run(model, "--images", images, "--per-class", "--json", target) == 0
    out = capsys.readouterr().out
    for word in ("mAP50", "recall", "2 images", "cat", "dog"):
        assert word in out
    result = json.loads(target.read_text())
    assert result["map"] == pytest.approx(1.0)
    assert result["objects"] == 4
    assert result["settings"]["score_threshold"] == 0.001


def test_min_map(model: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "--images", images, "--min-map", "0.99") == 0
    assert capsys.readouterr().err == ""
    assert run(model, "--images", images, "--score-threshold", "0.5", "--min-map", "0.9") == 1
    captured = capsys.readouterr()
    assert captured.err == "error: mAP 0.5000 is 0.4000 under the least allowed, 0.9\n"
    assert "mAP50" in captured.out  # the table is shown all the same


def test_max_drop_against_a_source_and_a_result(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worse = write_constant_detector(tmp_path / "worse.onnx", ROWS[:1], labels=("cat", "dog"))
    assert run(worse, "--images", images, "--reference", model) == 0  # only shows
    assert "-0.5000" in capsys.readouterr().out
    assert run(worse, "--images", images, "--reference", model, "--max-drop", "0.5") == 0
    capsys.readouterr()
    assert run(worse, "--images", images, "--reference", model, "--max-drop", "0.1") == 1
    assert capsys.readouterr().err == (
        f"error: mAP 0.5000 is 0.5000 under {model}'s 1.0000; at most 0.1 is allowed\n"
    )
    saved = tmp_path / "reference.json"
    assert run(model, "--images", images, "--json", saved) == 0
    assert run(worse, "--images", images, "--reference", saved, "--max-drop", "0.1") == 1
    assert run(model, "--images", images, "--reference", saved, "--max-drop", "0") == 0
    capsys.readouterr()
    assert run(model, "--images", images, "--limit", "1", "--reference", saved) == 1
    assert "was evaluated on other images or labels" in capsys.readouterr().err
    saved.write_text("{}")
    assert run(model, "--images", images, "--reference", saved) == 1
    assert "cannot be the reference" in capsys.readouterr().err


def test_engines_are_compared(
    model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    options = ["--engine", "openvino", "--reference", model, "--reference-engine", "onnxruntime"]
    assert run(model, "--images", images, *options, "--max-drop", "0.01") == 0
    out = capsys.readouterr().out
    assert f"{model} (openvino): 2 images" in out
    assert f"reference: {model}\n" in out


def test_images_without_an_answer_fail(
    model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = images / "a.jpg"
    path.write_bytes(path.read_bytes()[:-20])  # its header is fine
    assert run(model, "--images", images) == 1
    err = capsys.readouterr().err
    assert "error: 1 of 2 images got no answer, at most 0 may: a.jpg: " in err
    assert run(model, "--images", images, "--max-failures", "1") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.onnx"], "is neither a file, nor a folder, nor an address"),
        (["{images}"], "cannot read"),
        (["{images}/a.jpg"], "cannot be read as an ONNX model"),
        (["{model}", "--engine", "tensorrt"], "scripts/build_plan.py writes a plan"),
        (["{model}", "--annotations", "gone.json"], "there are no annotations gone.json"),
        (["ftp://host"], "is none of grpc, grpcs, http, https"),
        (["{model}", "--reference", "gone.json"], "gone.json"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    model: Path,
    images: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [text.format(model=model, images=images) for text in arguments]
    assert run(*given, "--images", images) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert captured.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--min-map", "33"],
        ["--max-drop", "0.1"],
        ["--reference-engine", "onnxruntime"],
        ["--limit", "0"],
        ["--concurrency", "0"],
        ["--iou-threshold", "-1"],
        ["--engine", "caffe"],
    ],
)
def test_wrong_use_is_2(model: Path, images: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(model, "--images", images, *arguments)
    assert caught.value.code == 2


def test_it_runs_as_a_script(model: Path, images: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, SCRIPT, model, "--images", images, "--min-map", "0.5"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "mAP" in result.stdout


def test_a_reference_without_answers_is_no_reference(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "reference.json"
    assert run(model, "--images", images, "--json", target) == 0
    result = json.loads(target.read_text())
    target.write_text(json.dumps(result | {"failures": [["a.png", "no answer in time"]]}))
    against = (model, "--images", images, "--reference", target, "--max-drop", "0.01")
    capsys.readouterr()
    assert run(*against) == 1
    err = capsys.readouterr().err
    assert "the reference" in err
    assert "gave no answer for 1 of 2 images" in err
    assert run(*against, "--max-failures", "1") == 0
