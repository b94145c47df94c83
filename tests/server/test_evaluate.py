"""What is served is as accurate as the same pipeline in process."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import build_repository
import evaluate as command
from detserve.pipeline import Pipeline
from evaluation import (
    Dataset,
    EvaluationSettings,
    evaluate_file,
    evaluate_repository,
    evaluate_server,
    load_dataset,
)
from import_detector import import_detector
from local_server import TritonServer
from photos import PHOTOS, jpeg
from tests.server.conftest import on_any_ports

SHARED = Path(__file__).resolve().parents[3] / "shared"
AT_060 = EvaluationSettings(iou_threshold=0.6)


@pytest.fixture(scope="module")
def photos(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four photos, labelled with what the detector is sure of, shifted a little."""
    root = tmp_path_factory.mktemp("photos")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    pipeline = Pipeline.from_repository(repository)
    for name in PHOTOS:
        data = jpeg(name)
        path = root / "images" / f"{name}.jpg"
        path.write_bytes(data)
        with Image.open(path) as image:
            width, height = image.size
        lines = []
        for found in pipeline.detect(data, score_threshold=0.4):
            x1, y1, x2, y2 = found.box_xyxy
            x1, y1 = x1 + (x2 - x1) / 10, y1 + (y2 - y1) / 10
            lines.append(
                f"{found.class_id} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height}"
                f" {(x2 - x1) / width} {(y2 - y1) / height}"
            )
        (root / "labels" / f"{name}.txt").write_text("\n".join(lines))
    return root / "images"


@pytest.fixture(scope="module", params=["photos", "coco128"])
def dataset(request: pytest.FixtureRequest, photos: Path) -> Dataset:
    if request.param == "photos":
        return load_dataset(photos)
    if not (SHARED / "data/coco128").is_dir():
        pytest.skip("needs ../shared")
    return load_dataset(SHARED / "data/coco128/images")


def test_served_accuracy_equals_in_process(
    server: TritonServer, repository: Path, dataset: Dataset
) -> None:
    here = evaluate_repository(repository, dataset, AT_060)
    assert 0.2 < here.map < 0.99  # the labels are neither missed nor hit exactly
    for url in (server.grpc_url, server.http_url):
        served = evaluate_server(url, dataset, AT_060, concurrency=4)
        assert served.failures == ()
        assert served.detections == here.detections
        assert served.drop_from(here) == pytest.approx(0, abs=1e-3)
        for ours, theirs in zip(served.per_class, here.per_class, strict=True):
            assert ours.name == theirs.name
            assert ours.map == pytest.approx(theirs.map, abs=1e-3)


@pytest.mark.skipif(not (SHARED / "models/yolox_nano.onnx").is_file(), reason="needs ../shared")
def test_a_detector_as_users_bring_it(tmp_path: Path) -> None:
    """YOLOX-Nano through import, repository and server: what its file says is what is served."""
    model, repository = tmp_path / "model.onnx", tmp_path / "repository"
    import_detector(SHARED / "models/yolox_nano.onnx", model)
    arguments = [str(model), "--repository", str(repository), "--no-check"]
    assert build_repository.main(arguments) == 0
    dataset = load_dataset(SHARED / "data/coco128/images")
    here = evaluate_file(model, dataset)
    # From an implementation that shares no code with this one; it resizes in another way.
    assert here.map == pytest.approx(0.3392, abs=0.002)
    assert here.map50 == pytest.approx(0.5201, abs=0.004)
    with on_any_ports(repository) as running:
        served = evaluate_server(running.grpc_url, dataset)
    assert served.failures == ()
    assert served.drop_from(here) == pytest.approx(0, abs=1e-3)


def test_the_gates_on_a_server(
    server: TritonServer,
    repository: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: str) -> int:
        return command.main([server.grpc_url, "--images", str(photos), *arguments])

    saved = tmp_path / "result.json"
    assert run("--json", str(saved), "--reference", str(repository), "--max-drop", "0.001") == 0
    assert f"detection at {server.grpc_url}" in capsys.readouterr().out
    assert run("--reference", str(saved), "--max-drop", "0", "--min-map", "1") == 1
    assert "under the least allowed, 1" in capsys.readouterr().err
    assert run("--ensemble", "absent") == 1
    assert "absent" in capsys.readouterr().err
    (photos / "broken.jpg").write_bytes((photos / "coffee.jpg").read_bytes()[:-3000])
    try:
        assert run() == 1
    finally:
        (photos / "broken.jpg").unlink()
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 1 of 5 images got no answer, at most 0 may: broken.jpg: ")


def test_a_server_that_is_not_there(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["http://127.0.0.1:9", "--images", str(photos)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "127.0.0.1:9" in line
