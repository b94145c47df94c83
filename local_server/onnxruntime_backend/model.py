"""Triton Python-based backend that stands in for the container's ONNX Runtime backend.

It serves ``<model>/<version>/model.onnx`` on the CPU and honours the same settings: the parameters
``intra_op_thread_count``, ``inter_op_thread_count`` and ``execution_mode``, and
``optimization.graph.level``. Where no thread count is given, the model's instances share the
cores of the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from detserve.engines import ExecutionMode, GraphOptimization, create_session
from detserve.model_config import string_parameters, threads_per_instance
from local_server._stand_in import Array, StandIn

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


class TritonPythonModel(StandIn):
    """One instance of an ONNX model."""

    file_name = "model.onnx"

    def load(self, path: Path, config: Mapping[str, Any]) -> None:
        """Load the model's file."""
        parameters = string_parameters(config)
        graph = config.get("optimization", {}).get("graph", {})
        self._session = create_session(
            path,
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

    def run(self, feed: dict[str, Array]) -> list[Array]:
        """Compute the outputs of one request."""
        arrays: list[Array] = self._session.run(self.outputs, feed)
        return arrays
