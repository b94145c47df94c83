"""Graph clean-up: the same outputs from fewer nodes.

onnxslim folds constants, merges equal subgraphs and removes dead ends, which exporters leave
behind; ONNX Runtime's basic rewrites then fuse batch normalisation, Mul and Add into convolutions
and recognise patterns (a Focus layer's eight Slices are one SpaceToDepth). ONNX Runtime itself
gains nothing by that, since it does its part anew at every load; other runtimes and quantisation
may.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnxruntime as ort

from contract import DetectorInfo
from detserve.engines import ORT_ERRORS
from optimization.errors import OptimizationError
from optimization.network import copy_model

__all__ = ["clean"]


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Simplify a detector's graph without changing what it computes.

    Args:
        model: A float32 detector of the contract.

    Returns:
        A new model of ONNX's own operators, with the same tensors and metadata.

    Raises:
        OptimizationError: onnxslim is missing, or ONNX Runtime does not take the model.
    """
    try:
        import onnxslim
    except ModuleNotFoundError as error:
        raise OptimizationError(
            f"cleaning a graph needs {error.name}: pip install 'detserve[optimize]'"
        ) from error
    info, opsets = DetectorInfo.of(model), list(model.opset_import)
    slimmed = onnxslim.slim(copy_model(model))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "basic.onnx"
        options.optimized_model_filepath = str(written)
        try:
            ort.InferenceSession(
                slimmed.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except ORT_ERRORS as error:
            raise OptimizationError(f"ONNX Runtime does not take the model: {error}") from error
        cleaned = onnx.load(written)
    # It imports every domain that it knows.
    used = {node.domain for node in cleaned.graph.node}
    if used - {"", *(opset.domain for opset in opsets)}:
        cleaned = slimmed  # rewrites into operators of its own are none for other runtimes
    del cleaned.opset_import[:]
    cleaned.opset_import.extend(opsets)
    info.write_to(cleaned)
    return cleaned
