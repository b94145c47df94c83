"""Reading a model repository: which models an ensemble chains, and their settings."""

from __future__ import annotations

import json
import os
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from detserve.imaging import PreprocessSettings
from detserve.model_config import own_parameters
from detserve.nms import SelectionSettings

__all__ = ["DetectorRepository", "RepositoryError", "read_model_config"]


class RepositoryError(RuntimeError):
    """A model repository lacks a part, or a part's configuration is wrong."""


def read_model_config(model_dir: Path) -> ModelConfig:
    """Read and parse ``config.pbtxt``.

    Raises:
        RepositoryError: The file is missing or is no model configuration.
    """
    path = model_dir / "config.pbtxt"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RepositoryError(f"cannot read {path}: {error.strerror}") from error
    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(f"{path} is no Triton model configuration: {error}") from error


class DetectorRepository:
    """One ensemble of a model repository: preprocess -> detector -> postprocess."""

    def __init__(self, path: str | os.PathLike[str], ensemble: str = "detection") -> None:
        """Read the configurations of an ensemble and of its three steps.

        Args:
            path: The model repository.
            ensemble: Name of the ensemble.

        Raises:
            RepositoryError: A model is missing, or the ensemble has not three steps.
        """
        self._path = Path(path)
        ensemble_config = read_model_config(self._path / ensemble)
        steps = ensemble_config.ensemble_scheduling.step
        if len(steps) != 3:
            raise RepositoryError(
                f"{ensemble} in {self._path} is no detection ensemble: it has {len(steps)} steps;"
                " preprocess, detector and postprocess are wanted"
            )
        self._ensemble = ensemble_config
        self.preprocess, self.detector, self.postprocess = (
            read_model_config(self._path / step.model_name) for step in steps
        )

    def model_file(self) -> Path:
        """The detector's file in its newest version."""
        model_dir = self._path / self.detector.name
        name: str = self.detector.default_model_filename or "model.onnx"
        files = [path for path in model_dir.glob(f"*/{name}") if path.parent.name.isdecimal()]
        if files:
            newest: Path = max(files, key=lambda path: int(path.parent.name))
            return newest
        raise RepositoryError(f"{model_dir} has no {name} in any version; run 'make model' first")

    def preprocess_settings(self) -> PreprocessSettings:
        """How the ensemble fits images to the detector's input."""
        height, width, _ = next(t.dims for t in self.detector.input if t.name == "images")
        try:
            return PreprocessSettings.from_parameters(
                _own_parameters(self.preprocess), width=width, height=height
            )
        except ValueError as error:
            raise RepositoryError(f"{self.preprocess.name}: {error}") from error

    def selection_settings(self) -> SelectionSettings:
        """The thresholds that a request does not give."""
        try:
            return SelectionSettings.from_parameters(_own_parameters(self.postprocess))
        except ValueError as error:
            raise RepositoryError(f"{self.postprocess.name}: {error}") from error

    def labels(self) -> tuple[str, ...]:
        """The names of the detector's classes; empty if it has none."""
        name = self.detector.output[0].label_filename
        if not name:
            return ()
        path = self._path / self.detector.name / name
        return tuple(path.read_text(encoding="utf-8").splitlines())

    def served_labels(self) -> list[str]:
        """The same names as clients read them: the ensemble's parameter ``labels``."""
        text = self._ensemble.parameters["labels"].string_value
        labels: list[str] = json.loads(text) if text else []
        return labels


def _own_parameters(config: ModelConfig) -> dict[str, str]:
    return own_parameters({name: value.string_value for name, value in config.parameters.items()})
