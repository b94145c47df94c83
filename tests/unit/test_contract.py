"""What a detector's file says of itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from contract import ContractError, DetectorInfo, load_model
from tests.models import write_detector

INFO = DetectorInfo(
    input_size_wh=(96, 96), family="yolox", source="a checkpoint", labels=("cat", "Straßenbahn"),
    resize="letterbox", anchor="top-left", pad_value=7, iou_threshold=0.65, variant="int8",
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A detector of the contract without metadata."""
    return write_detector(tmp_path / "model.onnx", rows=np.zeros((300, 6), np.float32))


def write(info: DetectorInfo, path: Path) -> Path:
    """Put metadata into a file."""
    model = onnx.load(path)
    info.write_to(model)
    onnx.save(model, path)
    return path


def test_metadata_come_back(path: Path) -> None:
    assert load_model(path)[1] == DetectorInfo(input_size_wh=(96, 96))
    assert load_model(write(INFO, path))[1] == INFO
    settings = INFO.preprocess_settings()
    assert (settings.width, settings.anchor, settings.pad_value) == (96, "top-left", 7)


def test_others_metadata_stay(path: Path) -> None:
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"author": "somebody", "resize": "stretch"})
    INFO.write_to(model)
    props = {prop.key: prop.value for prop in model.metadata_props}
    assert (props["author"], props["resize"]) == ("somebody", "letterbox")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"resize": "squeeze"}, "resize must be"),
        ({"pad_value": 300}, "pad_value must be"),
        ({"iou_threshold": 1.5}, "iou_threshold is 1.5"),
    ],
)
def test_damaged_metadata(path: Path, damage: dict[str, object], message: str) -> None:
    write(replace(INFO, **damage), path)  # type: ignore[arg-type]
    with pytest.raises(ContractError, match=message):
        load_model(path)


def test_other_tensors_are_told(tmp_path: Path) -> None:
    path = write_detector(tmp_path / "model.onnx", images="pixels")
    with pytest.raises(ContractError, match=r"has pixels UINT8 .* -> candidates FLOAT \[N, 3, 6\]"):
        load_model(path)


@pytest.mark.parametrize("name", ["model.onnx", "model.json", "model.txt"])
def test_a_file_that_is_no_model(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"map": 0.3}')
    with pytest.raises(ContractError, match="cannot be read as an ONNX model"):
        load_model(path)


def test_weights_that_are_missing_beside_the_file(path: Path) -> None:
    model = onnx.load(path)
    onnx.save(
        model, path, save_as_external_data=True, location="weights", size_threshold=0,
        convert_attribute=False,
    )  # fmt: skip
    (path.parent / "weights").unlink()
    with pytest.raises(ContractError, match="weights"):
        load_model(path)
