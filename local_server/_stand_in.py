"""What the Python-based backends that stand in for Triton's own have in common.

Only a backend of Triton can import this.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

__all__ = ["StandIn"]

Array = npt.NDArray[np.generic]


class StandIn(ABC):
    """One instance of a model, which answers every request by itself.

    On a CPU a batch takes as long as its images one by one, so requests are not put together.
    """

    file_name: str
    """The model's file where the configuration names none."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model's file."""
        config = json.loads(args["model_config"])
        file_name = config.get("default_model_filename") or self.file_name
        self.outputs: list[str] = [tensor["name"] for tensor in config["output"]]
        self._inputs: list[str] = [tensor["name"] for tensor in config["input"]]
        self.load(Path(args["model_repository"]) / args["model_version"] / file_name, config)

    @abstractmethod
    def load(self, path: Path, config: Mapping[str, Any]) -> None:
        """Load a model's file as its configuration, in JSON, wants it."""

    @abstractmethod
    def run(self, feed: dict[str, Array]) -> list[Array]:
        """Compute `outputs` from the inputs of one request."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        feed = {
            name: pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in self._inputs
        }
        tensors = zip(self.outputs, self.run(feed), strict=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in tensors])
