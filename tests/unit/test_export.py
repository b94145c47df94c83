"""The export as far as it goes without PyTorch: arguments, images, comparison."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from detserve.imaging import PreprocessSettings
from export_onnx import choose_opset, main
from exporting.compare import Tolerance, align_rows, differences, rounding
from exporting.errors import ExportError
from exporting.samples import ImageForm, read_samples

ROOT = Path(__file__).resolve().parents[2]
EXACT = Tolerance(1e-3, 0)

# Stands for an environment without the extra: imports and look-ups of its packages fail.
WITHOUT = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(name)
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {blocked} else real(name, *rest)
sys.meta_path.insert(0, Blocker())
sys.path[:0] = [{scripts!r}, {root!r}]
from export_onnx import main
raise SystemExit(main(["a.b:c", "-o", {out!r}, *{more}]))
"""


@pytest.mark.parametrize(
    ("blocked", "more", "named"),
    [
        (["torch"], [], "torch not installed"),
        (["torch", "onnx"], [], "torch, onnx not installed"),
    ],
)
def test_missing_extra_is_a_message(
    tmp_path: Path, blocked: list[str], more: list[str], named: str
) -> None:
    code = WITHOUT.format(
        blocked=set(blocked), scripts=str(ROOT / "scripts"), root=str(ROOT),
        out=str(tmp_path / "m.onnx"), more=more,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {named}")
    assert "pip install 'detserve[export]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_needs_no_extra() -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0


@pytest.mark.parametrize(
    ("exporter", "opset", "message"),
    [
        ("torchscript", 10, "opset 10 is out of range: the torchscript exporter writes 11 to 20"),
        ("torchscript", 22, "--exporter dynamo writes 22"),
        ("dynamo", 17, "--exporter torchscript writes 17"),
        ("dynamo", 99, "writes 18 to 23"),
    ],
)
def test_opset_out_of_range(exporter: str, opset: int, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        choose_opset(exporter, opset)


def test_default_opsets() -> None:
    assert (choose_opset("torchscript", None), choose_opset("dynamo", None)) == (17, 18)
    assert choose_opset("torchscript", 11) == 11


@pytest.mark.parametrize(
    "arguments",
    [
        ["a:b"],
        ["a:b", "-o", "m.onnx", "--input-size", "1x2x3"],
        ["a:b", "-o", "m.onnx", "--input-size", "0"],
        ["a:b", "-o", "m.onnx", "--std", "1,0,1"],
        ["a:b", "-o", "m.onnx", "--mean", "1,2"],
        ["a:b", "-o", "m.onnx", "--count", "0"],
        ["a:b", "-o", "m.onnx", "--tolerance", "nan"],
        ["a:b", "-o", "m.onnx", "--factory-arg", "depth"],
        ["a:b", "-o", "m.onnx", "--factory-arg", "=3"],
    ],
)
def test_usage_errors(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_pad_value_out_of_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    assert main(["a:b", "-o", str(tmp_path / "m.onnx"), "--pad-value", "300"]) == 1
    assert "pad_value must be 0 to 255" in capsys.readouterr().err


class TestSamples:
    settings = PreprocessSettings(width=8, height=4, resize="stretch")

    def test_order_mean_and_scale(self, tmp_path: Path) -> None:
        Image.new("RGB", (20, 10), (10, 20, 30)).save(tmp_path / "a.png")
        form = ImageForm(settings=self.settings, order="bgr", mean=(1, 2, 3), std=(2, 4, 8))
        names, images = read_samples(tmp_path, form, 8)
        # One image alone could not show what of it the export took for constant.
        assert list(names) == ["a.png", "a.png (mirrored)"]
        assert images.shape == (2, 3, 4, 8)
        assert np.array_equal(images[1], images[0, ..., ::-1])
        assert images.dtype == np.float32
        assert images[0, :, 0, 0].tolist() == [14.5, 4.5, 0.875]

    def test_takes_the_first_by_name(self, tmp_path: Path) -> None:
        for name in ("c.png", "a.png", "b.png", "notes.txt"):
            Image.new("RGB", (8, 8)).save(tmp_path / name, format="PNG")
        names, images = read_samples(tmp_path, ImageForm(settings=self.settings), 2)
        assert list(names) == ["a.png", "b.png"]
        assert len(images) == 2

    def test_no_images(self, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="holds no images"):
            read_samples(tmp_path, ImageForm(settings=self.settings), 8)
        with pytest.raises(ExportError, match="cannot be read"):
            read_samples(tmp_path / "none", ImageForm(settings=self.settings), 8)

    def test_damaged_image_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8nothing")
        with pytest.raises(ExportError, match=r"broken\.jpg"):
            read_samples(tmp_path, ImageForm(settings=self.settings), 8)


class TestComparison:
    def test_same(self) -> None:
        value = np.array([[1.0, 2.0]], np.float32)
        worst = differences({"a": value}, {"a": value}, EXACT)[0]
        assert (worst.share, worst.greatest) == (0, 0)

    def test_zero_tolerance(self) -> None:
        value = np.array([[0.0, 2.0]], np.float32)
        none = Tolerance(0, 0)
        assert differences({"a": value}, {"a": value}, none)[0].share == 0
        assert differences({"a": value}, {"a": value + 1}, none)[0].share == np.inf

    def test_worst_output_and_place(self) -> None:
        expected = {"a": np.zeros((2, 3), np.float32), "b": np.full((2, 3), 100, np.float32)}
        found = {"a": expected["a"].copy(), "b": expected["b"].copy()}
        found["a"][1, 2] = 0.5
        found["b"][0, 1] = 101
        worst, other = differences(expected, found, Tolerance(0.1, 0.1))
        # 0.5 of 0.1 allowed is worse than 1 of 10.1 allowed.
        assert (worst.name, worst.index, worst.expected, worst.found) == ("a", (1, 2), 0, 0.5)
        assert worst.share == pytest.approx(5)
        assert (other.name, other.greatest) == ("b", 1)
        assert other.share == pytest.approx(1 / 10.1)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_values_that_are_not_finite_never_match(self, bad: float) -> None:
        expected = {"a": np.array([bad, 0], np.float32)}
        assert differences(expected, expected, EXACT)[0].share == np.inf

    def test_shapes(self) -> None:
        worst = differences({"a": np.zeros((1, 2))}, {"a": np.zeros((1, 3))}, EXACT)[0]
        assert worst.share == np.inf
        assert str(worst) == "output 'a' has shape (1, 3), expected (1, 2)"

    def test_empty(self) -> None:
        empty = np.zeros((1, 0, 4), np.float32)
        assert differences({"a": empty}, {"a": empty}, EXACT)[0].share == 0
        assert align_rows({"a": empty}, {"a": empty}, EXACT)[1] == 0


class TestRounding:
    def test_each_column_has_its_own(self) -> None:
        expected = np.zeros((1, 3, 2), np.float32)
        exact = np.array([[[0.002, 0], [0, 0], [0.001, 0.003]]])
        slack = rounding(expected, exact, EXACT)
        assert slack.tolist() == [[[0.002, 0.003]]]
        found = np.array([[[0, 0], [0, 0.0035], [0.0025, 0]]], np.float32)
        assert differences({"a": expected}, {"a": found}, EXACT)[0].share > 1
        assert differences({"a": expected}, {"a": found}, EXACT, {"a": slack})[0].share < 1
        found[0, 0, 0] = 0.0035  # x may be off by less than y
        worst = differences({"a": expected}, {"a": found}, EXACT, {"a": slack})[0]
        assert (worst.index, worst.share > 1) == ((0, 0, 0), True)

    def test_another_choice_is_no_rounding(self) -> None:
        expected = np.zeros((1, 3, 2), np.float32)
        exact = np.array([[[0.5, 0.001], [0, 0], [0, 0]]])
        assert rounding(expected, exact, EXACT).tolist() == [[[0, 0.001]]]

    def test_fewer_axes(self) -> None:
        exact = np.array([[0.001, 0.002], [0, 0.003]])
        assert rounding(np.zeros((2, 2)), exact, EXACT).tolist() == exact.tolist()


class TestRowOrder:
    @pytest.fixture(autouse=True)
    def outputs(self) -> None:
        generator = np.random.default_rng(0)
        shapes = {"logits": (2, 20, 5), "boxes": (2, 20, 4), "other": (2, 7)}
        self.expected = {name: generator.normal(size=shape) for name, shape in shapes.items()}

    def shuffled(self) -> dict[str, npt.NDArray[np.float64]]:
        order = np.arange(20)
        order[[3, 4, 9]] = [9, 3, 4]
        found = {name: value.copy() for name, value in self.expected.items()}
        for name in ("logits", "boxes"):
            found[name][1] = found[name][1][order]
        return found

    def test_rows_go_back_to_their_places(self) -> None:
        aligned, moved = align_rows(self.expected, self.shuffled(), EXACT)
        assert moved == 3
        for name, value in self.expected.items():
            np.testing.assert_array_equal(aligned[name], value)

    def test_rows_move_in_all_outputs_or_in_none(self) -> None:
        found = self.shuffled()
        found["boxes"] = self.expected["boxes"].copy()  # only the logits changed places
        aligned, moved = align_rows(self.expected, found, EXACT)
        assert moved == 0
        assert differences(self.expected, aligned, EXACT)[0].share > 1

    def test_a_row_that_is_missing_stays_a_difference(self) -> None:
        found = self.shuffled()
        found["logits"][1, 4] += 1
        aligned, _ = align_rows(self.expected, found, EXACT)
        worst = differences(self.expected, aligned, EXACT)[0]
        assert worst.name == "logits"
        assert worst.share > 1

    def test_a_row_serves_only_once(self) -> None:
        expected = {"a": np.array([[[1.0], [2.0]]])}
        aligned, _ = align_rows(expected, {"a": np.array([[[2.0], [2.0]]])}, EXACT)
        assert aligned["a"].ravel().tolist() == [2, 2]
