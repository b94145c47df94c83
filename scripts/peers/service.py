"""What the peers' services have in common: the parts of the pipeline, and the form of an answer.

They take these parts from `detserve`, so that they compute what the ensemble computes, decoding
included: what differs is how requests get to them and back.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from detserve.detections import Detections
from detserve.engines import load_engine
from detserve.imaging import Geometry, PreprocessSettings, preprocess
from detserve.nms import SelectionSettings, select_detections
from detserve.repository import DetectorRepository

__all__ = ["FOLDER_VARIABLE", "Parts", "as_json", "end_with_parent", "service_arguments"]

FOLDER_VARIABLE = "DETSERVE_PEER_FOLDER"  # what a service is to remove when it is left alone


@dataclass(frozen=True)
class Parts:
    """The three stages of a repository's ensemble, to be called one by one.

    Attributes:
        infer: The detector: uint8 [N, H, W, 3] -> candidates float32 [N, K, 6].
        preprocess_settings: How images are fitted to its input.
        selection_settings: The thresholds.
        labels: The names of its classes.
    """

    infer: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]
    preprocess_settings: PreprocessSettings
    selection_settings: SelectionSettings
    labels: tuple[str, ...]

    @classmethod
    def load(cls, repository: Path, threads: int | None) -> Parts:
        """Load the parts.

        Args:
            repository: The model repository.
            threads: Threads inside one operator, asleep while they wait; None for the runtime's
                defaults: a thread for every core, which in ONNX Runtime spins while it waits.

        Raises:
            RepositoryError: The repository lacks a part.
            EngineError: The detector cannot be loaded.
        """
        parts = DetectorRepository(repository)
        if threads is None and parts.backend == "onnxruntime":
            infer = _with_defaults(parts.model_file())
        else:
            infer = load_engine(
                parts.model_file(),
                parts.backend,
                intra_op_threads=threads or 0,
                parameters=parts.detector_parameters(),
            ).infer
        return cls(infer, parts.preprocess_settings(), parts.selection_settings(), parts.labels())

    def decode(self, image: bytes) -> tuple[npt.NDArray[np.uint8], Geometry]:
        """Encoded image -> uint8 [H, W, 3] as the detector takes it, and where the image lies.

        Raises:
            ImageError: The bytes are no image that can be read.
        """
        settings = self.preprocess_settings
        pixels = np.empty((settings.height, settings.width, 3), np.uint8)
        return pixels, preprocess(image, settings, pixels)

    def select(self, candidates: npt.NDArray[np.float32], geometry: Geometry) -> Detections:
        """Suppress overlaps among the candidates of one image."""
        selected = select_detections(candidates, geometry, self.selection_settings)
        return Detections(*selected, self.labels)


def _with_defaults(
    path: Path,
) -> Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def infer(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        (candidates,) = session.run(["candidates"], {"images": images})
        return np.asarray(candidates, np.float32)

    return infer


def as_json(found: Detections) -> dict[str, Any]:
    """Detections as the services answer them."""
    return {
        "detections": [
            {"label": found.label_of(class_id), "class_id": class_id, "score": score, "box": box}
            for class_id, score, box in zip(
                found.class_ids.tolist(),
                found.scores.tolist(),
                found.boxes_xyxy.tolist(),
                strict=True,
            )
        ]
    }


def service_arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every service has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model-repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--threads", type=int, metavar="N",
        help="threads inside one operator of the detector (default: as the runtime does)",
    )  # fmt: skip
    return parser


def end_with_parent() -> None:
    """End this process and its children when the one that started it closes its standard input.

    The system closes it also when that process is killed. The folder that it has made for their
    temporary files is removed before. Only for the leader of a process group.
    """
    # What the system sends a stopped group when its parent is gone, before it lets it go on: so
    # that the thread below has its turn.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def watch() -> None:
        # Not through sys.stdin: a process forked meanwhile would find its lock taken for ever.
        while os.read(0, 1):
            pass
        if folder := os.environ.get(FOLDER_VARIABLE):
            shutil.rmtree(folder, ignore_errors=True)
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
