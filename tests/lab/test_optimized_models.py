"""Optimised detectors on labelled photos, on this CPU, and in TensorRT's parser and builder."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import optimize
from contract import load_model
from evaluation import evaluate_file, load_dataset
from optimization.calibration import collect, load_images
from optimization.fp16 import to_float16
from optimization.int8 import FORMS, prepare, quantize
from optimization.placement import place

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ROOT / "model_repository/detector/1/model.onnx"
PHOTOS = Path(__file__).resolve().parents[3] / "shared/data/coco128/images"

pytestmark = [
    pytest.mark.skipif(not DEFAULT.is_file(), reason="make model has not been run"),
    pytest.mark.skipif(not PHOTOS.is_dir(), reason="coco128 is not there"),
]


def test_int8_of_the_default_detector(tmp_path: Path) -> None:
    quantised = tmp_path / "int8.onnx"
    arguments = ["--clean", "--int8", "--calibration", PHOTOS, "--images", PHOTOS]
    command = [str(a) for a in (DEFAULT, "-o", quantised, *arguments)]
    assert optimize.main(command) == 0

    photos = load_dataset(PHOTOS)
    drop = evaluate_file(quantised, photos).drop_from(evaluate_file(DEFAULT, photos))
    assert drop <= 0.01
    assert quantised.stat().st_size < DEFAULT.stat().st_size / 3


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_builds_it(precision: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    model, info = load_model(DEFAULT)
    if precision == "fp16":
        model = to_float16(model)
    if precision == "int8":
        model = prepare(model)
        tensors = place(model, FORMS["tensorrt"].results).tensors
        histograms = collect(model, tensors, load_images(PHOTOS, info, 2).pixels)
        ranges = {name: item.range("mse") for name, item in histograms.items()}
        model = quantize(model, ranges, "tensorrt", {tensors[3]})
    onnx.checker.check_model(model, full_check=True)

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(model.SerializeToString()), [
        parser.get_error(index).desc() for index in range(parser.num_errors)
    ]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    width, height = info.input_size_wh
    profile.set_shape("images", *((count, height, width, 3) for count in (1, 4, 8)))
    assert config.add_optimization_profile(profile) == 0
    assert builder.build_serialized_network(network, config) is not None
