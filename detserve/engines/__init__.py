"""Engines: a batch of uint8 images in, candidates out."""

from detserve.engines._base import DetectorEngine, EngineError
from detserve.engines._load import load_engine
from detserve.engines._onnxruntime import (
    ORT_ERRORS,
    ExecutionMode,
    GraphOptimization,
    OnnxRuntimeEngine,
    create_session,
)

__all__ = [
    "ORT_ERRORS",
    "DetectorEngine",
    "EngineError",
    "ExecutionMode",
    "GraphOptimization",
    "OnnxRuntimeEngine",
    "create_session",
    "load_engine",
]
