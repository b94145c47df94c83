"""The OpenVINO engine, against ONNX Runtime's."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from detserve.engines import EngineError, OnnxRuntimeEngine, OpenVINOEngine, load_engine
from tests.models import CANDIDATES, write_detector

pytest.importorskip("openvino")

DEFAULT = Path(__file__).resolve().parents[2] / "model_repository/detector/1/model.onnx"


@pytest.mark.parametrize("batch", [1, 3])
def test_batches(tmp_path: Path, batch: int) -> None:
    engine = OpenVINOEngine(write_detector(tmp_path / "model.onnx"))
    assert engine.input_size_wh == (96, 96)
    candidates = engine.infer(np.zeros((batch, 96, 96, 3), np.uint8))
    assert candidates.dtype == np.float32
    np.testing.assert_array_equal(candidates, [CANDIDATES] * batch)


def test_answers_are_the_callers_own(tmp_path: Path) -> None:
    engine = OpenVINOEngine(write_detector(tmp_path / "model.onnx"))
    first = engine.infer(np.zeros((1, 96, 96, 3), np.uint8))
    first[:] = 0
    np.testing.assert_array_equal(engine.infer(np.zeros((1, 96, 96, 3), np.uint8)), [CANDIDATES])


@pytest.fixture(scope="module")
def images() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (4, 300, 300, 3), np.uint8)


@pytest.mark.skipif(not DEFAULT.is_file(), reason="no detector: run `make model`")
class TestDefaultDetector:
    def test_float32_is_onnx_runtimes(
        self, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    ) -> None:
        expected = OnnxRuntimeEngine(DEFAULT).infer(images)[..., 4]
        found = OpenVINOEngine(DEFAULT, precision="f32").infer(images)[..., 4]
        np.testing.assert_allclose(found, expected, atol=1e-4)

    def test_bfloat16_is_near(
        self, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    ) -> None:
        expected = OnnxRuntimeEngine(DEFAULT).infer(images)[..., 4]
        found = load_engine(DEFAULT, "openvino", parameters={"HINT_BF16": "YES"}).infer(images)
        np.testing.assert_allclose(found[..., 4], expected, atol=0.05)

    def test_threads_have_requests_of_their_own(
        self, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    ) -> None:
        engine = OpenVINOEngine(DEFAULT)
        expected = [engine.infer(image[None]) for image in images]
        wrong = []

        def ask(index: int) -> None:
            for _ in range(5):
                found = engine.infer(images[index : index + 1])
                if not np.array_equal(found, expected[index]):
                    wrong.append(index)

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(images))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="there is no model file"):
        OpenVINOEngine(tmp_path / "missing.onnx")
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"garbage")
    with pytest.raises(EngineError, match=r"OpenVINO cannot load .*garbage"):
        OpenVINOEngine(garbage)
    other = write_detector(tmp_path / "other.onnx", candidates="boxes")
    with pytest.raises(EngineError, match=r"boxes f32 .*a detector has"):
        OpenVINOEngine(other)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match=r"pip install 'detserve\[openvino\]'"):
        OpenVINOEngine(write_detector(tmp_path / "model.onnx"))


def test_unknown_backend(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no engine for the backend 'pytorch'"):
        load_engine(tmp_path / "model.pt", "pytorch")
