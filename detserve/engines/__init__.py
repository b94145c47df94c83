"""Engines: a batch of uint8 images in, candidates out."""

from detserve.engines._base import DetectorEngine, EngineError
from detserve.engines._cuda import Gpu, find_gpu
from detserve.engines._load import load_engine
from detserve.engines._onnxruntime import (
    ORT_ERRORS,
    ExecutionMode,
    GraphOptimization,
    OnnxRuntimeEngine,
    create_session,
)
from detserve.engines._openvino import InferencePrecision, OpenVINOEngine, compile_model
from detserve.engines._plan_header import PlanHeader, read_plan_header
from detserve.engines._tensorrt import TensorRTEngine

__all__ = [
    "ORT_ERRORS",
    "DetectorEngine",
    "EngineError",
    "ExecutionMode",
    "Gpu",
    "GraphOptimization",
    "InferencePrecision",
    "OnnxRuntimeEngine",
    "OpenVINOEngine",
    "PlanHeader",
    "TensorRTEngine",
    "compile_model",
    "create_session",
    "find_gpu",
    "load_engine",
    "read_plan_header",
]
