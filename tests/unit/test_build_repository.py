"""The command line of build_repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import build_repository
from assembly import NotCheckableError
from build_repository import main
from contract import DetectorInfo
from detserve.repository import DetectorRepository, RepositoryError
from tests.models import write_detector


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = write_detector(tmp_path / "model.onnx", rows=np.zeros((300, 6), np.float32))
    detector = onnx.load(path)
    DetectorInfo(input_size_wh=(96, 96), labels=("cup", "cat"), source="us").write_to(detector)
    onnx.save(detector, path)
    return str(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def run(root: Path, *arguments: str) -> int:
    return main([*arguments, "--repository", str(root)])


def test_versions(root: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, model, "--no-check") == 0
    assert f"Wrote {root}/detection/config.pbtxt" in capsys.readouterr().err
    assert run(root, model, "--no-check", "--version", "next") == 0
    assert run(root, model, "--no-check", "--version", "5", "--keep", "2") == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"Installed {root}/detector/5/model.onnx" in captured.err
    assert "Removed version 1" in captured.err
    assert run(root, "--rollback") == 0
    assert "Version 2 is served again; 5 is set aside" in capsys.readouterr().err
    assert DetectorRepository(root).served_version() == 2
    assert run(root, "--rollback") == 1
    assert "error: " in capsys.readouterr().err


def test_side_by_side(root: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, model, "--no-check") == 0
    options = ["--ensemble", "fast", "--engine", "openvino", "--instances", "1", "--max-batch", "8"]
    assert run(root, model, "--no-check", *options) == 0
    capsys.readouterr()
    assert run(root, "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["detection", "1*", "onnxruntime"],
        ["fast", "1*", "openvino"],
    ]
    assert lines[0].endswith("unknown family fp32 96x96, 2 labels, us")
    assert run(root, "--remove", "--ensemble", "fast") == 0
    assert "fast_detector" in capsys.readouterr().err
    assert run(root, "--list") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_check(
    root: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default a Triton that lacks the engine is no error; asked for, it is."""
    errors: list[RepositoryError] = [NotCheckableError("no backend here")]
    asked = []

    def check(repository: Path, ensemble: str) -> None:
        asked.append((repository, ensemble))
        if errors:
            raise errors[0]

    monkeypatch.setattr(build_repository, "check_served", check)
    assert run(root, model) == 0
    assert "Not tried out: no backend here" in capsys.readouterr().err
    assert run(root, model, "--check") == 1
    assert "error: no backend here" in capsys.readouterr().err
    errors[0] = RepositoryError("Triton does not serve detection: bad graph")
    assert run(root, model) == 1
    assert "error: Triton does not serve detection: bad graph" in capsys.readouterr().err
    assert run(root, model, "--no-check") == 0
    assert len(asked) == 3
    assert all(ensemble == "detection" and folder != root for folder, ensemble in asked)
    assert DetectorRepository(root).versions() == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--version", "newest"], "a number or 'next' is wanted, not 'newest'"),
        (["--dynamic-batching", "never"], "microseconds or 'off' are wanted, not 'never'"),
        (["--remove"], "--remove needs --ensemble NAME"),
        (["model.onnx", "--list"], "--list takes no MODEL"),
        (["--list", "--rollback"], "not allowed with argument"),
        (["--engine", "onnx"], "invalid choice"),
    ],
    ids=str,
)
def test_usage(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        run(root, *arguments)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_without_onnx() -> None:
    script = build_repository.__file__
    hide = "import runpy, sys; sys.modules['onnx'] = None; runpy.run_path(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", hide, script],
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == "error: reading detectors needs onnx: pip install 'detserve[model]'\n"


def test_no_version_is_served(root: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(root, model, "--no-check") == 0
    config = root / "detector/config.pbtxt"
    config.write_text(config.read_text() + "version_policy { specific { versions: [9] } }\n")
    assert run(root, model, "--no-check") == 0
    assert "No version is served" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--list"], ["--rollback"], ["--remove", "--ensemble", "x"]])
def test_no_repository(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(root, *arguments) == 1
    assert f"error: no model repository {root}: No such file" in capsys.readouterr().err


def test_the_default_leaves_another_detector_alone(
    root: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make serve` runs without a model, also where the repository serves a user's own."""
    default = write_detector(
        root.parent / "default.onnx", size=300, rows=np.zeros((300, 6), np.float32)
    )
    monkeypatch.setattr(build_repository, "fetch_coco_ssd", lambda folder: folder)
    monkeypatch.setattr(build_repository, "import_coco_ssd", lambda *_: None)
    monkeypatch.setattr(build_repository, "DEFAULT_MODEL", default)
    assert run(root) == 0
    assert DetectorRepository(root).served_version() == 1
    assert run(root) == 0  # again: over itself
    assert run(root, model, "--no-check", "--replace") == 0
    capsys.readouterr()
    assert run(root) == 0
    assert "Version 2 of detector is served: left as it is" in capsys.readouterr().err
    assert DetectorRepository(root).served_version() == 2


def test_the_default_leaves_a_promoted_detector_alone(
    root: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(root, model, "--no-check") == 0
    (root / "detector").rename(root / "detector_v2")
    for name in ("detector_v2", "detection"):
        path = root / name / "config.pbtxt"
        path.write_text(path.read_text().replace('"detector"', '"detector_v2"'))
    promoted = root / "detector_v2" / "1" / "model.onnx"
    before = promoted.read_bytes()
    assert run(root) == 0
    assert "Version 1 of detector_v2 is served: left as it is" in capsys.readouterr().err
    assert promoted.read_bytes() == before
    assert not (root / "detector").exists()
