"""How much of a detector's accuracy an optimised one keeps, in the runtime that it is for."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from contract import DetectorInfo
from detserve.detections import Detections
from detserve.engines import DetectorEngine, load_engine
from detserve.nms import SelectionSettings
from detserve.pipeline import Pipeline
from evaluation import Dataset, Evaluation, EvaluationSettings, evaluate
from optimization.simulation import session

__all__ = ["Yardstick"]


class _Simulated:
    """An engine that computes a quantised detector as its file says, for runtimes not at hand."""

    def __init__(self, model: onnx.ModelProto, input_size_wh: tuple[int, int]) -> None:
        self.input_size_wh = input_size_wh
        self._session = session(model)

    def infer(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `detserve.engines.DetectorEngine`."""
        (candidates,) = self._session.run(["candidates"], {"images": images})
        return np.asarray(candidates, np.float32)


class Yardstick:
    """Measures detectors on the same images."""

    def __init__(self, dataset: Dataset, target: str) -> None:
        """Choose what to measure with.

        Args:
            dataset: Labelled images.
            target: `onnxruntime` or `openvino`, which run the detector; `tensorrt`, whose
                quantised nodes ONNX Runtime computes as they are written.
        """
        self.dataset = dataset
        self._target = target

    def measure(self, model: onnx.ModelProto, name: str = "detector") -> Evaluation:
        """COCO's metrics of a detector of the contract.

        Raises:
            EngineError: It does not load.
            EvaluationError: pycocotools is missing.
            DatasetError: The labels are for other classes.
        """
        with tempfile.TemporaryDirectory() as folder:
            pipeline = _pipeline(model, self._target, Path(folder))
            settings = EvaluationSettings()

            def detect(image: bytes) -> Detections:
                return pipeline.detect(
                    image,
                    score_threshold=settings.score_threshold,
                    max_detections=settings.max_detections,
                )

            return evaluate(detect, self.dataset, pipeline.labels, source=name)


def _pipeline(model: onnx.ModelProto, target: str, folder: Path) -> Pipeline:
    info = DetectorInfo.of(model)
    engine: DetectorEngine
    if target == "tensorrt":
        engine = _Simulated(model, info.input_size_wh)
    else:
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        engine = load_engine(path, target)
    selection = SelectionSettings(iou_threshold=info.iou_threshold)
    return Pipeline(engine, info.preprocess_settings(), selection, info.labels)
