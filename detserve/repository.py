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


# Where a configuration names none.
_FILE_NAMES = {"onnxruntime": "model.onnx", "openvino": "model.xml", "tensorrt": "model.plan"}
_BACKENDS = {"onnxruntime_onnx": "onnxruntime", "tensorrt_plan": "tensorrt"}


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
        self.ensemble = ensemble_config
        self.preprocess, self.detector, self.postprocess = (
            read_model_config(self._path / step.model_name) for step in steps
        )

    @property
    def configs(self) -> tuple[ModelConfig, ModelConfig, ModelConfig, ModelConfig]:
        """The configurations of the steps, in their order, and of the ensemble."""
        return self.preprocess, self.detector, self.postprocess, self.ensemble

    @property
    def backend(self) -> str:
        """Name of the detector's backend."""
        backend: str = self.detector.backend
        return backend or _BACKENDS.get(self.detector.platform, self.detector.platform)

    def file_name(self) -> str:
        """What the detector's file is called in every version."""
        name: str = self.detector.default_model_filename
        return name or _FILE_NAMES.get(self.backend, "model.onnx")

    def versions(self) -> list[int]:
        """The versions that have the detector's file, ascending."""
        files = (self._path / self.detector.name).glob(f"*/{self.file_name()}")
        names = [path.parent.name for path in files]
        # Triton passes over names that begin with a zero.
        return sorted(int(name) for name in names if name.isdecimal() and name[0] != "0")

    def served_version(self) -> int | None:
        """The version that the ensemble's requests reach; None if there is none.

        It is the newest that Triton loads, unless the ensemble names another.
        """
        step = self.ensemble.ensemble_scheduling.step[1]
        versions = self.versions()
        if step.model_version > 0:
            versions = [version for version in versions if version == step.model_version]
        policy = self.detector.version_policy
        if policy.HasField("specific"):
            versions = [version for version in versions if version in policy.specific.versions]
        return max(versions, default=None)

    def model_file(self) -> Path:
        """The detector's file in the version that is served."""
        version = self.served_version()
        model_dir: Path = self._path / self.detector.name
        name = self.file_name()
        if version is None:
            raise RepositoryError(
                f"{model_dir} has no {name} in any version; run 'make model' first"
            )
        return model_dir / str(version) / name

    def detector_parameters(self) -> dict[str, str]:
        """The ``parameters`` of the detector's configuration."""
        return {name: value.string_value for name, value in self.detector.parameters.items()}

    def preprocess_settings(self) -> PreprocessSettings:
        """How the ensemble fits images to the detector's input."""
        found = [list(t.dims) for t in self.preprocess.output if t.name == "images"]
        if len(found) != 1 or len(found[0]) != 3:
            raise RepositoryError(f"{self.preprocess.name} has no output images [H, W, 3]")
        height, width, _ = found[0]
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
        try:
            return tuple(path.read_text(encoding="utf-8").splitlines())
        except OSError as error:
            raise RepositoryError(f"cannot read {path}: {error.strerror}") from error

    def served_labels(self) -> list[str]:
        """The same names as clients read them: the ensemble's parameter ``labels``."""
        if "labels" not in self.ensemble.parameters:
            return []
        try:
            labels: list[str] = json.loads(self.ensemble.parameters["labels"].string_value)
        except ValueError as error:
            raise RepositoryError(
                f"the parameter 'labels' of {self.ensemble.name} is no JSON: {error}"
            ) from error
        return labels


def _own_parameters(config: ModelConfig) -> dict[str, str]:
    return own_parameters({name: value.string_value for name, value in config.parameters.items()})
