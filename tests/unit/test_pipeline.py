"""The in-process pipeline on a small detector made here, and reading a model repository."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from PIL import Image

from detserve.engines import EngineError, OnnxRuntimeEngine
from detserve.imaging import ImageError, PreprocessSettings
from detserve.nms import SelectionSettings
from detserve.pipeline import Pipeline
from detserve.repository import DetectorRepository, RepositoryError
from tests.models import write_detector

REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"


def photo(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "grey").save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return Pipeline(
        OnnxRuntimeEngine(write_detector(tmp_path / "model.onnx")),
        PreprocessSettings(width=96, height=96, resize="stretch"),
        SelectionSettings(),
        ["cup", "cat"],
    )


def test_detections_are_in_pixels_of_each_image(pipeline: Pipeline) -> None:
    same, twice = pipeline.detect_batch([photo(96, 96), photo(192, 96)])
    assert [(found.label, found.box_xyxy) for found in same] == [("cat", (10, 10, 60, 60))]
    assert [found.box_xyxy for found in twice] == [(20, 10, 120, 60)]
    assert [round(found.score, 4) for found in same] == [0.9]


def test_thresholds_of_a_call(pipeline: Pipeline) -> None:
    image = photo(96, 96)
    assert len(pipeline.detect(image, iou_threshold=1.0)) == 2
    assert len(pipeline.detect(image, score_threshold=0.1)) == 2
    assert len(pipeline.detect(image, score_threshold=0.1, max_detections=1)) == 1
    assert len(pipeline.detect(image, score_threshold=0.95)) == 0
    with pytest.raises(ValueError, match="score_threshold must be between 0 and 1, got 2"):
        pipeline.detect(image, score_threshold=2)


def test_no_images(pipeline: Pipeline) -> None:
    assert pipeline.detect_batch([]) == []


def test_a_bad_image(pipeline: Pipeline) -> None:
    with pytest.raises(ImageError, match="empty"):
        pipeline.detect(b"")


def test_settings_for_another_size(tmp_path: Path) -> None:
    engine = OnnxRuntimeEngine(write_detector(tmp_path / "model.onnx"))
    with pytest.raises(ValueError, match=r"fitted to \(64, 96\).*input is \(96, 96\)"):
        Pipeline(engine, PreprocessSettings(width=64, height=96), SelectionSettings())


def test_engine_errors(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="there is no model file"):
        OnnxRuntimeEngine(tmp_path / "missing.onnx")
    (tmp_path / "garbage.onnx").write_bytes(b"garbage")
    with pytest.raises(EngineError, match="cannot load"):
        OnnxRuntimeEngine(tmp_path / "garbage.onnx")
    other = write_detector(tmp_path / "other.onnx", candidates="boxes")
    with pytest.raises(EngineError, match=r"boxes tensor\(float\).*a detector has"):
        OnnxRuntimeEngine(other)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The project's repository, less the detector's file."""
    ignore = shutil.ignore_patterns("*.onnx", "*.plan", "__pycache__")
    return Path(shutil.copytree(REPOSITORY, tmp_path / "repository", ignore=ignore))


def test_the_repository_reads_as_the_contract(repository: Path) -> None:
    read = DetectorRepository(repository)
    assert read.preprocess_settings() == PreprocessSettings(
        width=300, height=300, resize="stretch", max_bytes=20 * 2**20, max_pixels=50_000_000
    )
    assert read.selection_settings() == SelectionSettings(score_threshold=0.3, iou_threshold=0.5)
    assert len(read.labels()) == 80


def test_the_newest_version_is_taken(repository: Path) -> None:
    with pytest.raises(RepositoryError, match=r"no model.onnx in any version; run 'make model'"):
        DetectorRepository(repository).model_file()
    for version in ("1", "9", "10"):
        (repository / "detector" / version).mkdir(exist_ok=True)
        (repository / "detector" / version / "model.onnx").touch()
    assert DetectorRepository(repository).model_file().parent.name == "10"


@pytest.mark.parametrize(
    ("model", "old", "new", "message"),
    [
        ("preprocess", '"stretch"', '"squash"', "preprocess: resize must be"),
        ("postprocess", '"0.3"', '"3"', "postprocess: score_threshold must be"),
        ("detection", 'platform: "ensemble"', "platform: ensemble", "no Triton model config"),
        ("detection", 'model_name: "detector"', 'model_name: "other"', "cannot read .*other"),
    ],
)
def test_repository_errors(repository: Path, model: str, old: str, new: str, message: str) -> None:
    config = repository / model / "config.pbtxt"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))

    def read() -> None:
        settings = DetectorRepository(repository)
        settings.preprocess_settings()
        settings.selection_settings()

    with pytest.raises(RepositoryError, match=message):
        read()
