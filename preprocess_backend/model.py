"""Triton Python-based backend: encoded images -> the detector's input.

An adapter: the work is `detserve.imaging.preprocess`, the settings are the ``parameters`` of the
model's configuration.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from detserve.imaging import ImageError, PreprocessSettings, preprocess
from detserve.model_config import own_parameters, string_parameters, threads_per_instance


class TritonPythonModel:
    """One instance of a preprocessing model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the settings from the model's configuration."""
        config = json.loads(args["model_config"])
        height, width, _ = pb_utils.get_output_config_by_name(config, "images")["dims"]
        self._settings = PreprocessSettings.from_parameters(
            own_parameters(string_parameters(config)), width=width, height=height
        )
        # Decoding releases the interpreter lock: with cores to spare, a batch is decoded at once.
        threads = threads_per_instance(config)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request by itself: one bad image spoils none of the others."""
        if self._pool is not None and len(requests) > 1:
            return list(self._pool.map(self._answer, requests))
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def _answer(self, request: Any) -> Any:
        encoded = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy().ravel()
        images = np.empty((len(encoded), self._settings.height, self._settings.width, 3), np.uint8)
        geometry = np.empty((len(encoded), 6), np.float32)
        for index, data in enumerate(encoded):
            try:
                geometry[index] = preprocess(data, self._settings, images[index]).values
            except ImageError as error:
                place = f"image {index} of {len(encoded)}: " if len(encoded) > 1 else ""
                return pb_utils.InferenceResponse(
                    error=pb_utils.TritonError(f"{place}{error}", pb_utils.TritonError.INVALID_ARG)
                )
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("images", images), pb_utils.Tensor("geometry", geometry)]
        )
