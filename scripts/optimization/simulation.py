"""Quantised and float detectors, tensor by tensor: how much noise quantisation adds."""

from __future__ import annotations

import onnx
import onnxruntime as ort

from optimization.network import copy_model

__all__ = ["session"]


def session(model: onnx.ModelProto, outputs: list[str] | None = None) -> ort.InferenceSession:
    """A session that computes quantised nodes as they are written: in float, between codes.

    No kernels for int8 and nothing quantised at load, so that the result is the file's meaning,
    whichever runtime it is for.

    Args:
        model: The model.
        outputs: Tensors to give in place of its outputs.
    """
    if outputs is not None:
        model = copy_model(model)
        del model.graph.output[:]
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(n) for n in outputs)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
