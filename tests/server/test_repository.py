"""Repositories that `build_repository` assembles, served by a real Triton."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from assembly import NotCheckableError, check_served, install, roll_back
from build_repository import main as build_repository
from contract import DetectorInfo
from detection_client import DetectionClient
from detserve.pipeline import Pipeline
from detserve.repository import RepositoryError
from tests.images import odd_images
from tests.models import write_detector
from tests.server.conftest import on_any_ports

ROWS = np.zeros((300, 6), np.float32)
ROWS[:2] = [[8, 8, 40, 40, 0.75, 1], [16, 16, 56, 60, 0.5, 0]]
IMAGES = [image for name, image in odd_images().items() if "JPEG" in name][:3]


def small_detector(path: Path, *, score: float = 0.75, **options: object) -> Path:
    """A detector that finds two things, the surer of which with a score of ours."""
    rows = ROWS.copy()
    rows[0, 4] = score
    model = onnx.load(write_detector(path, size=64, rows=rows))
    info = DetectorInfo(input_size_wh=(64, 64), labels=("cup", "cat"), **options)  # type: ignore[arg-type]
    info.write_to(model)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def assembled(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default detector by ONNX Runtime and by OpenVINO, and a small one, side by side."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("assembled")
    default = repository / "detector/1/model.onnx"
    for ensemble, engine in (("detection", "onnxruntime"), ("vino", "openvino")):
        install(default, folder / "root", ensemble=ensemble, engine=engine)
    small = small_detector(folder / "small.onnx", anchor="top-left", pad_value=0)
    install(small, folder / "root", ensemble="small")
    return folder / "root"


@pytest.fixture(scope="module")
def grpc_url(assembled: Path) -> Iterator[str]:
    with on_any_ports(assembled) as running:
        assert sorted(set(running.stub_pids().values())) == sorted(
            f"{prefix}{step}"
            for prefix in ("", "vino_", "small_")
            for step in ("preprocess", "detector", "postprocess")
        )
        yield running.grpc_url


@pytest.mark.parametrize("ensemble", ["detection", "vino", "small"])
def test_side_by_side(assembled: Path, grpc_url: str, ensemble: str) -> None:
    """Each is what the pipeline in process is, one by one and in one request."""
    pipeline = Pipeline.from_repository(assembled, ensemble=ensemble)
    expected = pipeline.detect_batch(IMAGES, score_threshold=0.2)
    assert sum(map(len, expected)) > 0
    with DetectionClient(grpc_url, model=ensemble) as client:
        assert tuple(client.model_info().labels) == pipeline.labels
        answers = [
            *client.detect_batch(IMAGES, score_threshold=0.2),
            *(client.detect(image, score_threshold=0.2) for image in IMAGES),
        ]
    for found, wanted in zip(answers, expected * 2, strict=True):
        np.testing.assert_array_equal(found.class_ids, wanted.class_ids)
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-5)
        np.testing.assert_allclose(found.boxes_xyxy, wanted.boxes_xyxy, atol=0.05)


def test_a_version_and_back(tmp_path: Path) -> None:
    root = tmp_path / "root"

    def served_score() -> float:
        with on_any_ports(root) as running, DetectionClient(running.grpc_url) as client:
            return float(client.detect(IMAGES[0]).scores[0])

    install(small_detector(tmp_path / "first.onnx", score=0.75), root)
    install(small_detector(tmp_path / "second.onnx", score=0.875), root)
    assert served_score() == 0.875
    roll_back(root, "detection")
    assert served_score() == 0.75


def test_the_check_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_detector(tmp_path / "small.onnx")
    root = tmp_path / "root"
    assert build_repository([str(model), "--repository", str(root), "--check"]) == 0
    assert "Not tried out" not in capsys.readouterr().err
    assert (root / "detector/1/model.onnx").is_file()


def test_the_check_refuses_what_does_not_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A graph that only its runtime finds wrong: Triton's own words, and nothing installed."""
    good = small_detector(tmp_path / "good.onnx")
    root = tmp_path / "root"
    install(good, root)
    model = onnx.load(good)
    model.graph.node[-1].op_type = "Tilt"
    onnx.save(model, tmp_path / "bad.onnx")
    assert build_repository([str(tmp_path / "bad.onnx"), "--repository", str(root)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: Triton does not serve detection: ")
    assert "Tilt" in error
    assert "Traceback" not in error
    assert [path.name for path in (root / "detector").iterdir() if path.is_dir()] == ["1"]


def test_an_engine_that_is_not_here(assembled: Path, tmp_path: Path) -> None:
    install(small_detector(tmp_path / "small.onnx"), tmp_path / "root")
    config = tmp_path / "root/detector/config.pbtxt"
    config.write_text(config.read_text().replace("onnxruntime", "tensorrt"))
    with pytest.raises(NotCheckableError, match="no backend tensorrt"):
        check_served(tmp_path / "root", "detection")
    with pytest.raises(RepositoryError, match="cannot read"):
        check_served(assembled, "missing")
