"""What export_onnx.py refuses, and how it says so."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from export_onnx import main

NETWORKS = """
    from dataclasses import dataclass
    from typing import NamedTuple

    import torch
    from torch import nn

    class Head(nn.Module):
        def __init__(self, channels=4):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, 2, 1), nn.BatchNorm2d(channels))
            self.head = nn.Conv2d(channels, 6, 1)

        def forward(self, x):
            return self.head(self.stem(x).relu()).flatten(2).transpose(1, 2)

    class Pair(NamedTuple):
        boxes: torch.Tensor
        scores: torch.Tensor

    @dataclass
    class Result:
        pred_boxes: torch.Tensor
        pred_logits: torch.Tensor
        aux_outputs: list
        loss: None = None

    class Nested(Head):
        kind = "dataclass"

        def forward(self, x):
            rows = super().forward(x)
            boxes, logits = rows[..., :4], rows[..., 4:]
            if self.kind == "tuple":
                return (boxes, [logits, boxes + 1])
            if self.kind == "named":
                return Pair(boxes, logits)
            if self.kind == "dict":
                return {"a": boxes, "b": {"c": logits}}
            return Result(boxes, logits, [{"pred_boxes": boxes}])

    def nested(kind):
        module = Nested()
        module.kind = kind
        return module

    class Branching(Head):
        def forward(self, x):
            rows = super().forward(x)
            return rows + 1 if float(x.mean()) > 0.5 else rows

    class Remembering(Head):
        def forward(self, x):
            return super().forward(x) + x[0, 0, 0, 0].item()  # a constant of the export's

    class FixedBatch(Head):
        def forward(self, x):
            return super().forward(x).reshape(len(x), -1, 6)[: int(x.shape[0])]

    class Random(Head):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5, training=True)

    class NotANumber(Head):
        def forward(self, x):
            return (super().forward(x) - 1000).sqrt()

    class Unsorted(Head):
        # Swaps two rows under export, as another rounding of a near tie would.
        def forward(self, x):
            rows = super().forward(x)
            if torch.onnx.is_in_onnx_export():
                rows = torch.cat([rows[:, 1:2], rows[:, :1], rows[:, 2:]], 1)
            return {"logits": rows[..., 4:], "pred_boxes": rows[..., :4]}

    class WithoutBatch(Head):
        def forward(self, x):
            return super().forward(x).sum((0, 1))

    class TwoInputs(Head):
        def forward(self, x, sizes):
            return super().forward(x)

    class Tied(Head):
        def __init__(self):
            super().__init__()
            self.second = self.head

    def no_module():
        return "a string"

    ready = Head()
    number = 3
"""


@pytest.fixture
def export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command in a folder with `networks.py` and images; status, stdout, stderr."""
    (tmp_path / "networks.py").write_text(textwrap.dedent(NETWORKS))
    (tmp_path / "images").mkdir()
    for index, grey in enumerate((20, 200, 90)):
        noise = np.random.default_rng(index).integers(-20, 20, (40, 40, 3))
        Image.fromarray((noise + grey).clip(0, 255).astype(np.uint8)).save(
            tmp_path / f"images/{index}.png"
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "networks", raising=False)
    torch.manual_seed(0)

    def run(factory: str, *more: str) -> tuple[int, str, str]:
        status = main([factory if ":" in factory else f"networks:{factory}", "-o", "out.onnx",
                       "--input-size", "32", "--images", "images", *more])  # fmt: skip
        printed = capsys.readouterr()
        if status:
            # A refused export leaves nothing.
            assert printed.err.count("error: ") == 1
            assert not Path("out.onnx").exists()
        assert not list(tmp_path.glob(".export-*"))
        return status, printed.out, printed.err

    return run


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    state: dict[str, torch.Tensor] = importlib.import_module("networks").Head().state_dict()
    return state


@pytest.mark.parametrize(
    ("exporter", "opset"), [("torchscript", 11), ("torchscript", 20), ("dynamo", 18)]
)
def test_export(export: Callable[..., Any], exporter: str, opset: int) -> None:
    status, out, err = export("Head", "--exporter", exporter, "--opset", str(opset))
    assert status == 0, err
    model = onnx.load("out.onnx")
    assert model.opset_import[0].version == opset
    assert "on 3 images at batch 1 and 4" in out
    assert "output [N, 256, 6]" in out
    assert "next: python scripts/import_detector.py out.onnx" in err


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("networks:", "is no factory: write package.module:function"),
        ("nowhere.at.all:make", "there is no module 'nowhere'"),
        ("networks:Haed", "networks has no 'Haed'; it has Branching"),
        ("networks:number", "is a int, not a function or a class"),
        ("networks:ready", "is a module itself"),
        ("networks:no_module", "returned builtins.str, not a torch.nn.Module"),
        ("networks:nested", "missing a required argument: 'kind'"),
        ("networks:TwoInputs", "does not take images float32 [2, 3, 32, 32]"),
        ("networks:WithoutBatch", "no output has a batch dimension"),
    ],
)
def test_factory_errors(export: Callable[..., Any], factory: str, message: str) -> None:
    status, _, err = export(factory)
    assert status == 1
    assert message in err


def test_broken_import_is_told_from_a_missing_module(export: Callable[..., Any]) -> None:
    Path("needs.py").write_text("import not_installed_here\n")
    status, _, err = export("needs:make")
    assert status == 1
    assert "needs needs a package that is not there: No module named 'not_installed_here'" in err


def test_factory_arguments(export: Callable[..., Any]) -> None:
    status, _, err = export("Head", "--factory-arg", "channels=8")
    assert status == 0, err
    shapes = [list(item.dims) for item in onnx.load("out.onnx").graph.initializer]
    assert [8, 3, 3, 3] in shapes


def test_size_that_does_not_fit_the_module(export: Callable[..., Any]) -> None:
    status, _, err = export("Head", "--pad-value", "300")
    assert status == 1
    assert "pad_value must be 0 to 255" in err


@pytest.mark.usefixtures("export")
def test_an_interrupted_export_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("exporting.verify.verify", interrupt)
    status = main(["networks:Head", "-o", "out/out.onnx", "--input-size", "32",
                   "--images", "images"])  # fmt: skip
    assert status == 130
    assert list(Path("out").iterdir()) == []


def test_a_missing_config_is_not_asked_for_elsewhere(export: Callable[..., Any]) -> None:
    pytest.importorskip("transformers", reason="make test-lab installs it")
    status, _, err = export("examples.rtdetr:factory", "--factory-arg", "config=gone/config.json")
    assert status == 1
    assert "error: config=gone/config.json: there is no such file" in err


class TestOutputs:
    @pytest.mark.parametrize(
        ("kind", "names"),
        [
            ("tuple", ["output_0", "output_1_0", "output_1_1"]),
            ("named", ["boxes", "scores"]),
            ("dict", ["a", "b_c"]),
            ("dataclass", ["pred_logits", "pred_boxes"]),
        ],
    )
    def test_nested(self, export: Callable[..., Any], kind: str, names: list[str]) -> None:
        status, _, err = export("nested", "--factory-arg", f"kind={kind}")
        assert status == 0, err
        assert [output.name for output in onnx.load("out.onnx").graph.output] == names
        assert ("left out: aux_outputs_0_pred_boxes" in err) == (kind == "dataclass")

    def test_chosen(self, export: Callable[..., Any]) -> None:
        status, _, _ = export("nested", "--factory-arg", "kind=dict", "--outputs", "b_c")
        assert status == 0
        assert [output.name for output in onnx.load("out.onnx").graph.output] == ["b_c"]

    def test_unknown(self, export: Callable[..., Any]) -> None:
        status, _, err = export("nested", "--factory-arg", "kind=dict", "--outputs", "boxes")
        assert status == 1
        assert "error: the module returns no boxes; it returns a, b_c" in err


class TestCheckpoint:
    @pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "model", "ema.module", "parallel"])
    def test_kinds(self, export: Callable[..., Any], name: str) -> None:
        """Wherever the weights are, the file has them."""
        export("Head")
        state, path, more = weights(), Path("w.pth"), []
        if name == "w.safetensors":
            path = Path(name)
            save_file(state, path)
        elif name == "model":
            torch.save({"model": state, "epoch": 3}, path)
        elif name == "ema.module":
            torch.save({"model": weights(), "ema": {"module": state, "updates": 1}}, path)
            more = ["--key", name]
        elif name == "parallel":
            torch.save({f"module.{key}": value for key, value in state.items()}, path)
        else:
            torch.save(state, path)
        status, _, err = export("Head", "--checkpoint", str(path), *more)
        assert status == 0, err
        stored = [onnx.numpy_helper.to_array(i) for i in onnx.load("out.onnx").graph.initializer]
        head = state["head.weight"].numpy()
        assert any(a.shape == head.shape and np.array_equal(a, head) for a in stored)

    def refused(self, export: Callable[..., Any], path: str | Path, *more: str) -> str:
        status, _, err = export("Head", "--checkpoint", str(path), *more)
        assert status == 1
        return str(err)

    @pytest.fixture
    def state(self, export: Callable[..., Any]) -> dict[str, torch.Tensor]:
        export("Head")
        Path("out.onnx").unlink()
        return weights()

    def test_missing_keys(self, export: Callable[..., Any], state: dict[str, Any]) -> None:
        del state["head.bias"], state["stem.1.num_batches_tracked"]
        torch.save(state, "w.pth")
        assert "1 missing (--allow-missing): head.bias" in self.refused(export, "w.pth")
        assert export("Head", "--checkpoint", "w.pth", "--allow-missing")[0] == 0

    def test_unexpected_keys(self, export: Callable[..., Any], state: dict[str, Any]) -> None:
        torch.save(state | {f"teacher.{i}": torch.zeros(1) for i in range(10)}, "w.pth")
        err = self.refused(export, "w.pth")
        assert "10 unexpected (--allow-unexpected): teacher.0, teacher.1" in err
        assert "and 2 more" in err
        assert export("Head", "--checkpoint", "w.pth", "--allow-unexpected")[0] == 0

    def test_shapes(self, export: Callable[..., Any], state: dict[str, Any]) -> None:
        torch.save(state | {"head.weight": torch.zeros(9, 4, 1, 1)}, "w.pth")
        err = self.refused(export, "w.pth", "--allow-missing", "--allow-unexpected")
        assert "head.weight (9x4x1x1 in the checkpoint, 6x4x1x1 in the module)" in err

    def test_another_network(self, export: Callable[..., Any], state: dict[str, Any]) -> None:
        torch.save({f"x.{key}": value for key, value in state.items()}, "w.pth")
        err = self.refused(export, "w.pth", "--allow-missing", "--allow-unexpected")
        assert "no tensor of the checkpoint has a name that the module has" in err

    def test_tied_weights_need_one_name(
        self, export: Callable[..., Any], state: dict[str, Any]
    ) -> None:
        torch.save(state, "w.pth")  # of Head: without `second`
        assert export("Tied", "--checkpoint", "w.pth")[0] == 0

    def test_ambiguous(self, export: Callable[..., Any], state: dict[str, Any]) -> None:
        torch.save({"model": state, "ema": state}, "w.pth")
        assert "has weights under model, ema: choose with --key" in self.refused(export, "w.pth")
        assert export("Head", "--checkpoint", "w.pth", "--key", "ema")[0] == 0

    def test_no_weights_inside(self, export: Callable[..., Any], state: dict[str, Any]) -> None:
        torch.save({"epoch": 3, "best": {"net": state}}, "w.pth")
        assert "it has epoch, best; say with --key" in self.refused(export, "w.pth")
        assert "nothing under 'nets'" in self.refused(export, "w.pth", "--key", "nets")
        assert export("Head", "--checkpoint", "w.pth", "--key", "best.net")[0] == 0

    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    @pytest.mark.parametrize("content", [b"", b"garbage" * 50, b"\x80\x02garbage"])
    def test_damaged(self, export: Callable[..., Any], name: str, content: bytes) -> None:
        Path(name).write_bytes(content)
        assert f"error: {name} " in self.refused(export, name)

    def test_truncated(self, export: Callable[..., Any], state: dict[str, Any]) -> None:
        torch.save(state, "w.pth")
        Path("w.pth").write_bytes(Path("w.pth").read_bytes()[:-300])
        assert "error: w.pth is damaged, or no checkpoint" in self.refused(export, "w.pth")

    def test_no_such_file(self, export: Callable[..., Any]) -> None:
        assert "none.pth cannot be read" in self.refused(export, "none.pth")
        assert "none.safetensors cannot be read" in self.refused(export, "none.safetensors")


class Evil:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("ran",))


class TestPickle:
    @pytest.mark.parametrize("container", ["zip", "plain"])
    def test_code_runs_only_when_asked_for(
        self, export: Callable[..., Any], container: str
    ) -> None:
        assert export("Head")[0] == 0
        content = {"model": weights(), "trainer": Evil()}
        if container == "zip":
            torch.save(content, "w.pth")
        else:
            Path("w.pth").write_bytes(pickle.dumps(content))
        Path("out.onnx").unlink()
        status, _, err = export("Head", "--checkpoint", "w.pth")
        assert status == 1
        assert not Path("ran").exists()
        assert "not a file of tensors alone" in err
        assert "--unsafe-pickle" in err
        if container == "zip":
            status, _, err = export("Head", "--checkpoint", "w.pth", "--unsafe-pickle")
            assert status == 0
            assert "warning: --unsafe-pickle runs whatever code w.pth holds" in err
            assert Path("ran").is_dir()

    def test_whole_module(self, export: Callable[..., Any]) -> None:
        assert export("Head")[0] == 0
        head = importlib.import_module("networks").Head()
        torch.save({"model": head, "epoch": 1}, "w.pth")
        Path("out.onnx").unlink()
        assert export("Head", "--checkpoint", "w.pth")[0] == 1
        assert export("Head", "--checkpoint", "w.pth", "--pickle")[0] == 0


class TestProof:
    def test_a_branch_that_became_a_constant(self, export: Callable[..., Any]) -> None:
        """The images are dark, light and dark; the export saw two of them."""
        status, _, err = export("Branching")
        assert status == 1
        assert "does not give what PyTorch gives: output 'output' at [0, " in err
        assert "of image 1.png in a batch of 1; tolerated are 0.0001 + 0.0001 x" in err
        assert "exported as it went for the example image" in err

    def test_one_image_that_became_a_constant(self, export: Callable[..., Any]) -> None:
        """Another one is needed to see it: its mirrored copy."""
        status, _, err = export("Remembering", "--count", "1")
        assert status == 1
        assert "does not give what PyTorch gives: output 'output' at" in err

    def test_a_dynamo_branch(self, export: Callable[..., Any]) -> None:
        status, _, err = export("Branching", "--exporter", "dynamo")
        assert status == 1
        assert "dynamo exporter cannot export the module in opset 18" in err

    def test_random_module(self, export: Callable[..., Any]) -> None:
        status, _, err = export("Random")
        assert status == 1
        assert "gives another result each time, also in eval mode: output 'output' at" in err

    def test_not_a_number(self, export: Callable[..., Any]) -> None:
        status, _, err = export("NotANumber")
        assert status == 1
        assert "PyTorch itself gives no usable numbers: output 'output'" in err

    def test_tolerance(self, export: Callable[..., Any]) -> None:
        zero = ["--tolerance", "0", "--relative-tolerance", "1e-12", "--rounding", "0"]
        status, _, err = export("Head", *zero)
        assert status == 1
        assert "output 'output' at" in err
        assert "tolerated are 0 + 1e-12 x" in err

    def test_rounding(self, export: Callable[..., Any]) -> None:
        """What float32 cannot do is no fault of the export; what is wrong stays wrong."""
        exact = ["--tolerance", "1e-8", "--relative-tolerance", "0"]
        assert export("Head", *exact, "--rounding", "0")[0] == 1
        status, out, err = export("Head", *exact)
        assert status == 0, err
        assert "float32 alone rounds by up to" in out
        Path("out.onnx").unlink()
        assert export("Branching", *exact)[0] == 1
        assert export("Unsorted", *exact)[0] == 1

    def test_rows_in_another_order(self, export: Callable[..., Any]) -> None:
        status, _, err = export("Unsorted")
        assert status == 1
        assert "The same rows are there, 2 of them in another place" in err
        status, out, err = export("Unsorted", "--unordered")
        assert status == 0, err
        # Three images alone, then four in a batch.
        assert "14 rows changed places" in out

    @pytest.mark.usefixtures("export")
    def test_an_existing_file_outlives_a_refusal(self) -> None:
        Path("kept").mkdir()
        Path("kept/out.onnx").write_bytes(b"before")
        assert main(["networks:Branching", "-o", "kept/out.onnx", "--input-size", "32",
                     "--images", "images"]) == 1  # fmt: skip
        assert Path("kept/out.onnx").read_bytes() == b"before"
        assert len(list(Path("kept").iterdir())) == 1
