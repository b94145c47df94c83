"""The job that fills the model store: its script run for real, its programs' options known."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from contract import DetectorInfo
from tests.models import write_detector
from tests.unit.manifests import MANIFESTS, ROOT, overlay, pod

SCRIPT = MANIFESTS / "store/build-release.sh"


def test_the_plan_is_built_by_options_that_there_are() -> None:
    (container,) = [
        one for one in pod(overlay("gpu"), "model-store").containers() if one["name"] == "plan"
    ]
    model, output, *_ = container["args"]
    # Where the script of the other steps has them: $WORK/repository and $WORK/plans.
    assert model == "/detserve/build/repository/detector/1/model.onnx"
    assert output == "--output=/detserve/build/plans/model.plan"
    done = subprocess.run(
        [sys.executable, "scripts/build_plan.py", *container["args"]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # The options are understood (a wrong one is status 2), and then there is no such file here.
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")


def publish(folder: Path, *steps: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the script of the job as its container does."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["/bin/sh", str(SCRIPT), *steps],
        cwd=ROOT,
        env={
            **os.environ,
            "PATH": path,
            "MODEL_STORE": str(folder / "models"),
            "WORK": str(folder / "work"),
            "MODEL_RELEASE": "r1",
            **more,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = write_detector(tmp_path / "model.onnx", rows=np.zeros((300, 6), np.float32))
    detector = onnx.load(path)
    DetectorInfo(input_size_wh=(96, 96), labels=("cup", "cat"), source="us").write_to(detector)
    onnx.save(detector, path)
    (tmp_path / "models").mkdir()
    (tmp_path / "work").mkdir()
    return str(path)


def test_a_release_is_published_once(model: str, tmp_path: Path) -> None:
    steps = pod(overlay("cpu"), "model-store").spec["containers"][0]["args"]
    done = publish(tmp_path, *steps, MODEL=model)
    assert done.returncode == 0, done.stderr
    release = tmp_path / "models/r1"
    assert sorted(path.name for path in release.iterdir() if path.is_dir()) == [
        "detection", "detector", "postprocess", "preprocess",
    ]  # fmt: skip
    assert (release / "detector/1/model.onnx").is_file()
    before = (release / "detector/1/model.onnx").stat().st_mtime_ns
    again = publish(tmp_path, *steps, MODEL="/missing.onnx")
    assert (again.returncode, "there already" in again.stdout) == (0, True)
    assert (release / "detector/1/model.onnx").stat().st_mtime_ns == before


def test_half_a_release_is_not_seen(model: str, tmp_path: Path) -> None:
    partial = tmp_path / "models/r1.partial"
    partial.mkdir()
    (partial / "left").touch()  # by a job that was killed
    failed = publish(tmp_path, "build", "publish", MODEL="/missing.onnx")
    assert failed.returncode != 0
    assert "/missing.onnx" in failed.stderr
    assert not (tmp_path / "models/r1").exists()
    done = publish(tmp_path, "build", "publish", MODEL=model)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["r1"]
    assert not (tmp_path / "models/r1/left").exists()


def test_a_step_that_there_is_not(tmp_path: Path) -> None:
    done = publish(tmp_path, "bild")
    assert (done.returncode, done.stderr) == (
        2,
        "error: no step bild; there are build, plan and publish\n",
    )
