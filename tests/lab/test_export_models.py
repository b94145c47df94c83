"""The recipes of examples/: networks of public libraries, exported and compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load_model, save_model

from detserve.imaging import PreprocessSettings
from examples import rtdetr, yolox_weights_from_onnx
from export_onnx import main
from exporting.compare import Tolerance, differences
from exporting.samples import ImageForm, read_samples

YOLOX_NANO = Path(__file__).resolve().parents[3] / "shared/models/yolox_nano.onnx"
# Of thop, which YOLOX imports.
pytestmark = pytest.mark.filterwarnings("ignore:distutils Version:DeprecationWarning")

# The smallest RT-DETR with everything that the published ones have.
CONFIG = {
    "model_type": "rt_detr",
    "backbone_config": {
        "model_type": "rt_detr_resnet",
        "embedding_size": 16,
        "hidden_sizes": [16, 32, 48, 64],
        "depths": [1, 1, 1, 1],
        "out_features": ["stage2", "stage3", "stage4"],
    },
    "backbone": None,
    "encoder_in_channels": [32, 48, 64],
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "d_model": 32,
    "decoder_in_channels": [32, 32, 32],
    "decoder_ffn_dim": 64,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "num_queries": 60,
    "id2label": {str(index): f"class {index}" for index in range(8)},
}


def dims(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    return {
        info.name: [d.dim_param or d.dim_value for d in info.type.tensor_type.shape.dim]
        for info in (*model.graph.input, *model.graph.output)
    }


@pytest.mark.skipif(not YOLOX_NANO.exists(), reason="needs yolox_nano.onnx")
def test_yolox_nano_is_the_released_file_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX -> checkpoint -> YOLOX's own module -> ONNX gives the outputs of the original."""
    checkpoint, exported = tmp_path / "nano.safetensors", tmp_path / "nano.onnx"
    assert yolox_weights_from_onnx.main([str(YOLOX_NANO), str(checkpoint)]) == 0
    form = ["--input-size", "416", "--input-order", "bgr", "--std", "1", "--anchor", "top-left"]
    status = main(["examples.yolox:factory", "--checkpoint", str(checkpoint), *form,
                   "-o", str(exported)])  # fmt: skip
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "output [N, 3549, 85]" in printed.out
    assert "--input-order=bgr --std=1,1,1 --anchor=top-left" in printed.err
    assert "Warning" not in printed.err

    model = onnx.load(exported)
    assert dims(model) == {"images": ["N", 3, 416, 416], "output": ["N", 3549, 85]}
    assert model.opset_import[0].version == 17
    settings = PreprocessSettings(width=416, height=416, anchor="top-left")
    _, images = read_samples(None, ImageForm(settings=settings, order="bgr", std=(1, 1, 1)), 4)
    (found,) = ort.InferenceSession(str(exported)).run(None, {"images": images})
    options = ort.SessionOptions()
    options.log_severity_level = 4  # of initialisers that the original does not use
    original = ort.InferenceSession(str(YOLOX_NANO), options)
    expected = np.concatenate([original.run(None, {"images": image[None]})[0] for image in images])
    assert expected[..., 4].max() > 0.5, "there is something to find in the photos"
    np.testing.assert_allclose(found[..., 4:], expected[..., 4:], rtol=0, atol=1e-4)  # scores
    # Boxes are in cells of 8 to 32 pixels; float32 rounds them by 2e-4 in either runtime.
    np.testing.assert_allclose(found[..., :4], expected[..., :4], rtol=0, atol=4e-4)


@pytest.mark.skipif(not YOLOX_NANO.exists(), reason="needs yolox_nano.onnx")
def test_weights_of_another_size_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tiny.safetensors"
    arguments = [str(YOLOX_NANO), str(out), "--width", "0.375"]
    assert yolox_weights_from_onnx.main(arguments) == 1
    assert "in the file and" in capsys.readouterr().err
    assert not out.exists()


@pytest.fixture(scope="module")
def rtdetr_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """`config.json` and `model.safetensors`, as a published model has them."""
    folder = tmp_path_factory.mktemp("rtdetr")
    config, weights = folder / "config.json", folder / "model.safetensors"
    config.write_text(json.dumps(CONFIG))
    torch.manual_seed(0)
    module = rtdetr.factory(str(config))
    # As it is initialised the signal fades away, and all queries are equally good: the choice
    # among them would be one of rounding. Training, or this, tells them apart.
    for name, value in module.state_dict().items():
        if "normalization.weight" in name or "norm.weight" in name:
            value.fill_(1)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter)
    save_model(module, str(weights))
    return config, weights


def test_rtdetr(
    tmp_path: Path, rtdetr_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, weights = rtdetr_files
    exported = tmp_path / "rtdetr.onnx"
    arguments = ["--resize", "stretch", "--input-size", "192", "--unordered"]
    status = main(["examples.rtdetr:factory", "--factory-arg", f"config={config}",
                   "--checkpoint", str(weights), *arguments, "-o", str(exported)])  # fmt: skip
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert "left out: last_hidden_state" in printed.err
    assert dims(onnx.load(exported)) == {
        "images": ["N", 3, 192, 192], "logits": ["N", 60, 8], "pred_boxes": ["N", 60, 4]
    }  # fmt: skip

    # Beside the tool's own comparison: one with a fresh module and images of its own.
    module = rtdetr.factory(str(config)).eval()
    load_model(module, weights)
    settings = PreprocessSettings(width=192, height=192, resize="stretch")
    _, images = read_samples(None, ImageForm(settings=settings), 3)
    with torch.no_grad():
        outputs = module(torch.from_numpy(images))
    expected = {name: outputs[name].numpy() for name in ("logits", "pred_boxes")}
    found = ort.InferenceSession(str(exported)).run(list(expected), {"images": images})
    worst = differences(expected, dict(zip(expected, found, strict=True)), Tolerance(1e-3, 1e-4))[0]
    assert worst.share < 1, str(worst)
    assert expected["logits"].std() > 0.1, "the queries differ"


def test_dynamo_refuses_a_fixed_batch(
    tmp_path: Path, rtdetr_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Transformers' `len(source_flatten)` makes torch.export fix the batch without a word."""
    config, weights = rtdetr_files
    exported = tmp_path / "rtdetr.onnx"
    status = main(["examples.rtdetr:factory", "--factory-arg", f"config={config}", "--checkpoint",
                   str(weights), "--input-size", "96", "--exporter", "dynamo",
                   "-o", str(exported)])  # fmt: skip
    assert status == 1
    assert "the module's code fixes the batch: images became [2, 3, 96, 96]" in (
        capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []
