"""The report on a detector's variants."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import report
from reporting.images import split
from reporting.measure import MeasureError, Speed, measure
from reporting.table import Row, markdown_notes, markdown_table, recommend
from tests.images import encode
from tests.models import write_detector

SPEED = Speed(detector_ms=10.0, p50_ms=12.0, p99_ms=20.0, images_per_s=80.0, peak_memory_mb=200.0)
BASE = Row(
    variant="fp32", engine="onnxruntime", size_mb=17.0, accuracy=0.34, drop=0.0, speed=SPEED,
    speedup=1.0,
)  # fmt: skip


def row(variant: str, drop: float | None, speedup: float | None, **values: Any) -> Row:
    """A row like the base's but for what counts."""
    return replace(BASE, variant=variant, drop=drop, speedup=speedup, **values)


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ([], "fp32"),
        ([row("int8", 0.004, 1.5)], "int8"),
        ([row("int8", 0.004, 1.5), row("better", -0.01, 1.6)], "better"),
        ([row("inaccurate", 0.02, 3.0), row("int8", 0.01, 1.5)], "int8"),
        ([row("inaccurate", 0.02, 3.0)], "fp32"),
        ([row("hardly faster", 0.0, 1.03)], "fp32"),
        ([row("does not run", None, None, speed=None)], "fp32"),
    ],
)
def test_the_fastest_variant_that_is_accurate_enough_is_recommended(
    others: list[Row], chosen: str
) -> None:
    assert recommend([BASE, *others], 0.01).row.variant == chosen


def test_the_reason_names_what_is_faster_but_loses_too_much() -> None:
    reason = recommend([BASE, row("pruned", 0.2, 3.0), row("int8", 0.004, 1.5)], 0.01).reason
    assert reason.startswith("1.50 times the images a second of fp32 in onnxruntime")
    assert "loses 0.0040" in reason
    assert "pruned in onnxruntime (-0.200)" in reason


def test_the_table_has_the_chosen_row_in_bold_and_gaps_where_nothing_was_measured() -> None:
    failed = Row(variant="fp16", engine="openvino", notes=("could not be made: so",))
    lines = markdown_table([BASE, failed], BASE, "mAP").splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| **fp32** | **onnxruntime** | **17.0** | **0.3400** | **+0.0000**")
    assert lines[3].split("|")[3:] == ["  "] * 9 + [""]
    assert markdown_notes([BASE, failed]) == "- fp16 in openvino:\n  - could not be made: so"


def test_a_file_is_measured_in_processes_of_its_own(tmp_path: Path) -> None:
    rows = np.zeros((300, 6), np.float32)
    model = write_detector(tmp_path / "model.onnx", rows=rows)
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encode(Image.new("RGB", (64, 48)), "JPEG"))
    speed = measure(model, "onnxruntime", [photo], processes=2, seconds=0.2)
    assert 0 < speed.detector_ms < speed.p50_ms <= speed.p99_ms
    assert speed.images_per_s > 1
    assert speed.peak_memory_mb > 20


def test_a_file_that_does_not_run_says_why(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"garbage")
    with pytest.raises(MeasureError, match=r"model.onnx does not run with onnxruntime: .*ONNX"):
        measure(model, "onnxruntime", [], processes=2, seconds=0.1)


def test_a_missing_detector_is_an_error_and_not_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(tmp_path / "none.onnx"), "--output", str(tmp_path / "out")]) == 1
    assert "none.onnx cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_variants_are_not_judged_by_what_they_were_fitted_to(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for number in range(8):
        name = f"{number}"
        (tmp_path / "images" / f"{name}.jpg").write_bytes(
            encode(Image.new("RGB", (64, 48), (30 * number, 0, 0)), "JPEG")
        )
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    work = tmp_path / "work"
    work.mkdir()
    dataset, name, calibration = split(Path("none"), work, tmp_path / "images", None, None)
    judged = {image.path.read_bytes() for image in dataset.images}
    fitted = {path.read_bytes() for path in calibration.iterdir()}
    assert name == "mAP"
    assert (len(judged), len(fitted), judged & fitted) == (6, 2, set())


def test_a_report_from_end_to_end(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    model = Path(report.DEFAULT_MODEL)
    if not model.is_file():
        pytest.skip("no detector: run `make model`")
    out = tmp_path / "out"
    arguments = ["--rounds", "1", "--seconds", "0.3", "--variants", "l1:0.5", "--no-serve"]
    assert report.main([*arguments, "--engines", "onnxruntime", "--output", str(out)]) == 0
    data = json.loads((out / "report.json").read_text())
    assert [found["variant"] for found in data["rows"]] == ["fp32", "l1:0.5"]
    assert data["rows"][0]["accuracy"] == pytest.approx(1)  # the detector agrees with itself
    assert data["rows"][1]["accuracy"] < 0.99
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "| **" in (out / "report.md").read_text()
