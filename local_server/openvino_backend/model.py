"""Triton Python-based backend that stands in for the container's OpenVINO backend.

It serves ``<model>/<version>/model.xml``, or the ONNX file that ``default_model_filename`` names,
on the CPU and honours the same parameters: ``INFERENCE_NUM_THREADS``, ``NUM_STREAMS``,
``PERFORMANCE_HINT`` and ``HINT_BF16``. Where no thread count is given, the model's instances share
the cores of the machine.

With a ``max_batch_size`` the container's backend takes batches of exactly that size, or pads them
to it. The stand-in does not imitate that and refuses the setting: a first dimension of -1 takes
batches of any size in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detserve.engines import compile_model
from detserve.model_config import string_parameters, threads_per_instance
from local_server._stand_in import Array, StandIn

HINTS = ("LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT")


class Settings:
    """The parameters of a model, by the names and values that the container's backend knows."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._values = {name: text.upper() for name, text in string_parameters(config).items()}

    def number(self, name: str) -> int:
        """A number, 0 where none is given."""
        text = self._values.get(name, "0")
        if not text.isdecimal():
            raise ValueError(f"{name} must be a non-negative number, got {text}")
        return int(text)

    def choice(self, name: str, *choices: str, default: str) -> str:
        """One of several words, or a number where the default is one."""
        text = self._values.get(name, default)
        if text not in (*choices, default) and not (default.isdecimal() and text.isdecimal()):
            kinds = [*choices, "a number"] if default.isdecimal() else choices
            raise ValueError(f"{name} must be one of {', '.join(kinds)}, got {text}")
        return text


class TritonPythonModel(StandIn):
    """One instance of an ONNX or OpenVINO IR model."""

    file_name = "model.xml"

    def load(self, path: Path, config: Mapping[str, Any]) -> None:
        """Load the model's file."""
        batch = config.get("max_batch_size", 0)
        if batch > 1:
            raise ValueError(
                f"max_batch_size is {batch}: Triton's OpenVINO backend takes batches of exactly"
                " that size. Leave it out and put -1 before the dims of inputs and outputs"
            )
        settings = Settings(config)
        bf16 = settings.choice("HINT_BF16", "YES", default="") == "YES"
        self._model = compile_model(
            path,
            threads=settings.number("INFERENCE_NUM_THREADS") or threads_per_instance(config),
            precision="bf16" if bf16 else None,
            streams=settings.choice("NUM_STREAMS", "AUTO", "NUMA", default="1"),
            hint=settings.choice("PERFORMANCE_HINT", *HINTS, default="LATENCY"),
        )
        self._request = self._model.create_infer_request()

    def run(self, feed: dict[str, Array]) -> list[Array]:
        """Compute the outputs of one request."""
        found = self._request.infer(feed, share_inputs=True)
        return [found[name] for name in self.outputs]
