"""Triton Python-based backend that stands in for the container's ONNX Runtime backend.

It serves ``<model>/<version>/model.onnx`` on the CPU and honours the same settings: the parameters
``intra_op_thread_count``, ``inter_op_thread_count`` and ``execution_mode``, and
``optimization.graph.level``. Where no thread count is given, the model's instances share the
cores of the machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import triton_python_backend_utils as pb_utils

from detserve.engines import ExecutionMode, GraphOptimization, create_session
from detserve.model_config import string_parameters, threads_per_instance

# As the container's backend reads them.
EXECUTION_MODES: dict[str, ExecutionMode] = {"0": "sequential", "1": "parallel"}
GRAPH_LEVELS: dict[str, GraphOptimization] = {
    "-1": "basic",
    "0": "all",
    "1": "extended",
    "2": "disable",
}


Choice = TypeVar("Choice", ExecutionMode, GraphOptimization)


def setting(choices: dict[str, Choice], name: str, value: object) -> Choice:
    """Look up a setting of the model's configuration.

    Raises:
        ValueError: It has a value that the container's backend does not know.
    """
    try:
        return choices[str(value)]
    except KeyError:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value}") from None


class TritonPythonModel:
    """One instance of an ONNX model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model's file."""
        config = json.loads(args["model_config"])
        parameters = string_parameters(config)
        graph = config.get("optimization", {}).get("graph", {})
        file_name = config.get("default_model_filename") or "model.onnx"
        self._session = create_session(
            Path(args["model_repository"]) / args["model_version"] / file_name,
            intra_op_threads=int(parameters.get("intra_op_thread_count", 0))
            or threads_per_instance(config),
            inter_op_threads=int(parameters.get("inter_op_thread_count", 0)),
            execution_mode=setting(
                EXECUTION_MODES, "execution_mode", parameters.get("execution_mode", 0)
            ),
            graph_optimization=setting(
                GRAPH_LEVELS, "optimization.graph.level", graph.get("level", 0)
            ),
        )
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run every request by itself: on a CPU a batch takes as long as its images one by one."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        feed = {
            name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in self._inputs
        }
        arrays = self._session.run(self._outputs, feed)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(name, array)
                for name, array in zip(self._outputs, arrays, strict=True)
            ]
        )
