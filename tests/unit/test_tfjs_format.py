"""The weights of TensorFlow.js models, quantised or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tfjs_format import TfjsImportError, load_weights

Array = npt.NDArray[Any]
Entry = dict[str, Any]


@pytest.mark.parametrize(
    ("entry", "stored", "expected"),
    [
        ({"dtype": "float32"}, np.array([0.5, -2], "<f4"), np.array([0.5, -2], np.float32)),
        (
            {"dtype": "float32", "quantization": {"dtype": "uint8", "scale": 0.1, "min": -1.5}},
            np.array([0, 255], "u1"),
            np.array([-1.5, 24.0], np.float32),
        ),
        (
            {"dtype": "float32", "quantization": {"dtype": "uint16", "scale": 1e-3, "min": 2}},
            np.array([1, 65535], "<u2"),
            np.array([2.001, 67.535], np.float32),
        ),
        (
            {"dtype": "float32", "quantization": {"dtype": "float16"}},
            np.array([0.1, 6e4], "<f2"),
            np.array([0.1, 6e4], np.float16).astype(np.float32),
        ),
        (  # JavaScript rounds halves up
            {"dtype": "int32", "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1.5}},
            np.array([0, 1, 2, 3], "u1"),
            np.array([-1, -1, 0, 0], np.int32),
        ),
    ],
)
def test_weights_are_dequantised_like_tensorflow_js(
    tmp_path: Path, entry: Entry, stored: Array, expected: Array
) -> None:
    (tmp_path / "shard").write_bytes(stored.tobytes())
    manifest = [{"paths": ["shard"], "weights": [{"name": "w", "shape": [stored.size], **entry}]}]
    (weight,) = load_weights(manifest, tmp_path).values()
    assert weight.dtype == expected.dtype
    assert np.array_equal(weight, expected)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "float32", "shape": [3]}, "end before"),
        ({"dtype": "float32", "shape": [1]}, "belong to no weight"),
        ({"dtype": "string", "shape": [2]}, "unknown dtype"),
        (
            {"dtype": "float32", "shape": [2], "quantization": {"dtype": "int4", "scale": 1}},
            "unknown dtype",
        ),
    ],
)
def test_broken_weights_are_refused(tmp_path: Path, entry: Entry, message: str) -> None:
    (tmp_path / "shard").write_bytes(bytes(8))
    with pytest.raises(TfjsImportError, match=message):
        load_weights([{"paths": ["shard"], "weights": [{"name": "w", **entry}]}], tmp_path)
