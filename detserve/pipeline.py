"""The three stages in one process: what the server is measured against, and the offline mode."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from detserve.detections import Detections
from detserve.engines import DetectorEngine, load_engine
from detserve.imaging import Geometry, PreprocessSettings, preprocess
from detserve.nms import SelectionSettings, select_detections
from detserve.repository import DetectorRepository

__all__ = ["Pipeline"]


class Pipeline:
    """Encoded images in, detections out, without a server."""

    def __init__(
        self,
        engine: DetectorEngine,
        preprocess_settings: PreprocessSettings,
        selection_settings: SelectionSettings,
        labels: Sequence[str] = (),
    ) -> None:
        """Put a pipeline together.

        Args:
            engine: The detector.
            preprocess_settings: How images are fitted to its input.
            selection_settings: Thresholds that a call does not give.
            labels: The names of its classes.

        Raises:
            ValueError: The settings are for another input size than the engine's.
        """
        input_wh = (preprocess_settings.width, preprocess_settings.height)
        if engine.input_size_wh != input_wh:
            raise ValueError(
                f"images are fitted to {input_wh} pixels, but the detector's input is"
                f" {engine.input_size_wh}"
            )
        self._engine = engine
        self._preprocess_settings = preprocess_settings
        self._selection_settings = selection_settings
        self.labels = tuple(labels)

    @classmethod
    def from_repository(
        cls,
        path: str | os.PathLike[str],
        *,
        ensemble: str = "detection",
        intra_op_threads: int = 1,
    ) -> Pipeline:
        """The same pipeline that Triton serves from a model repository.

        Args:
            path: The model repository.
            ensemble: Name of the ensemble.
            intra_op_threads: Threads inside one operator of the detector; 0 takes all cores.

        Raises:
            RepositoryError: The repository lacks a part, or a part's configuration is wrong.
            EngineError: The detector cannot be loaded.
        """
        repository = DetectorRepository(path, ensemble)
        return cls(
            load_engine(
                repository.model_file(),
                repository.backend,
                intra_op_threads=intra_op_threads,
                parameters=repository.detector_parameters(),
            ),
            repository.preprocess_settings(),
            repository.selection_settings(),
            repository.labels(),
        )

    def detect(
        self,
        image: bytes,
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> Detections:
        """Detect on one encoded image.

        Args:
            image: JPEG, PNG, WebP, BMP or TIFF.
            score_threshold: Lowest score that is kept, 0 to 1.
            iou_threshold: Highest overlap of two kept boxes of one class, 0 to 1.
            max_detections: How many to keep at the most.

        Raises:
            ImageError: The bytes are no image that can be read.
            ValueError: A threshold is out of its range.
        """
        return self.detect_batch(
            [image],
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
        )[0]

    def detect_batch(
        self,
        images: Sequence[bytes],
        *,
        score_threshold: float | None = None,
        iou_threshold: float | None = None,
        max_detections: int | None = None,
    ) -> list[Detections]:
        """Detect on several encoded images, of any sizes, in one run of the detector.

        Arguments and errors are those of `detect`; the first image that cannot be read raises.
        """
        selection = self._selection_settings.override(
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
        )
        if not images:
            return []
        settings = self._preprocess_settings
        batch = np.empty((len(images), settings.height, settings.width, 3), np.uint8)
        geometries = [
            preprocess(image, settings, out) for image, out in zip(images, batch, strict=True)
        ]
        return [
            self._select(candidates, geometry, selection)
            for candidates, geometry in zip(self._engine.infer(batch), geometries, strict=True)
        ]

    def _select(
        self,
        candidates: npt.NDArray[np.float32],
        geometry: Geometry,
        selection: SelectionSettings,
    ) -> Detections:
        return Detections(*select_detections(candidates, geometry, selection), self.labels)
