"""Triton Python-based backend: encoded images -> the detector's input.

An adapter: the work is `detserve.imaging.preprocess`, the settings are the ``parameters`` of the
model's configuration.
"""

from __future__ import annotations

import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from detserve.imaging import ImageError, PreprocessSettings, preprocess
from detserve.model_config import (
    own_parameters,
    parse_parameters,
    string_parameters,
    threads_per_instance,
)


class TritonPythonModel:
    """One instance of a preprocessing model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the settings from the model's configuration."""
        config = json.loads(args["model_config"])
        height, width, _ = pb_utils.get_output_config_by_name(config, "images")["dims"]
        parameters = string_parameters(config)
        self._settings = PreprocessSettings.from_parameters(
            own_parameters(parameters), width=width, height=height
        )
        nice = parse_parameters({"NICE": parameters.get("NICE", "0")}, NICE=int)["NICE"]
        os.nice(max(0, nice))  # before the threads below are made: they inherit it
        warnings.simplefilter("ignore")  # Pillow's, of odd metadata in an image
        # Decoding releases the interpreter lock: with cores to spare, images are decoded at once.
        threads = threads_per_instance(config)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request by itself: one bad image spoils none of the others."""
        batches = [_Batch(request, self._settings) for request in requests]
        work = [(batch, index) for batch in batches for index in range(len(batch.encoded))]
        if self._pool is not None and len(work) > 1:
            list(self._pool.map(lambda item: item[0].fit(item[1]), work))
        else:
            for batch, index in work:
                batch.fit(index)
        return [batch.response() for batch in batches]

    def finalize(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


class _Batch:
    """The images of one request, and what becomes of them."""

    def __init__(self, request: Any, settings: PreprocessSettings) -> None:
        self.encoded = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy().ravel()
        self._settings = settings
        count = len(self.encoded)
        self._images = np.empty((count, settings.height, settings.width, 3), np.uint8)
        self._geometry = np.empty((count, 6), np.float32)
        self._errors: dict[int, ImageError] = {}

    def fit(self, index: int) -> None:
        """Decode one image and fit it to the detector's input."""
        try:
            geometry = preprocess(self.encoded[index], self._settings, self._images[index])
        except ImageError as error:
            self._errors[index] = error
        else:
            self._geometry[index] = geometry.values

    def response(self) -> Any:
        """The tensors, or what was wrong with the first bad image."""
        if self._errors:
            index = min(self._errors)
            many = len(self.encoded) > 1
            place = f"image {index} of {len(self.encoded)}: " if many else ""
            message = f"{place}{self._errors[index]}"
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
            )
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("images", self._images), pb_utils.Tensor("geometry", self._geometry)]
        )
