"""Triton Python model: candidates -> detections in pixels of the image as sent.

An adapter: the work is `detserve.nms.select_detections`, the defaults are the ``parameters`` of
the model's configuration.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from detserve.imaging import Geometry
from detserve.model_config import own_parameters, string_parameters
from detserve.nms import SelectionSettings, select_detections


class TritonPythonModel:
    """One instance of the postprocessing model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the defaults from the model's configuration."""
        config = json.loads(args["model_config"])
        self._defaults = SelectionSettings.from_parameters(
            own_parameters(string_parameters(config))
        )
        self._rows = pb_utils.get_output_config_by_name(config, "detection_boxes")["dims"][0]
        self._check(self._defaults)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request by itself."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            return pb_utils.InferenceResponse(self._outputs(request))
        except ValueError as error:
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
            )

    def _outputs(self, request: Any) -> list[Any]:
        candidates = pb_utils.get_input_tensor_by_name(request, "candidates").as_numpy()
        geometry = pb_utils.get_input_tensor_by_name(request, "geometry").as_numpy()
        batch = len(candidates)
        count = np.zeros((batch, 1), np.int32)
        boxes = np.zeros((batch, self._rows, 4), np.float32)
        scores = np.zeros((batch, self._rows), np.float32)
        classes = np.zeros((batch, self._rows), np.int32)
        for index, settings in enumerate(self._settings(request, batch)):
            found = select_detections(candidates[index], Geometry(geometry[index]), settings)
            count[index] = n = len(found[1])
            boxes[index, :n], scores[index, :n], classes[index, :n] = found
        return [
            pb_utils.Tensor("num_detections", count),
            pb_utils.Tensor("detection_boxes", boxes),
            pb_utils.Tensor("detection_scores", scores),
            pb_utils.Tensor("detection_classes", classes),
        ]

    def _settings(self, request: Any, batch: int) -> list[SelectionSettings]:
        """The settings of each image of a request."""
        given = {}
        for name in ("score_threshold", "iou_threshold", "max_detections"):
            tensor = pb_utils.get_input_tensor_by_name(request, name.upper())
            if tensor is not None:
                given[name] = tensor.as_numpy().ravel().tolist()
        if not given:
            return [self._defaults] * batch
        return [
            self._check(
                self._defaults.override(**{name: values[index] for name, values in given.items()})
            )
            for index in range(batch)
        ]

    def _check(self, settings: SelectionSettings) -> SelectionSettings:
        if settings.max_detections > self._rows:
            raise ValueError(
                f"max_detections must be at most {self._rows}, got {settings.max_detections}"
            )
        return settings
