"""Checks of a folded detector's file: that it runs, keeps the contract, and is the same model."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
from onnx import TensorProto

from detserve.engines import ORT_ERRORS
from families.batch import run_grouped
from families.folding import Folded
from families.graph import Array, DetectorImportError
from families.pixels import as_model_takes
from families.raw import run

# How far rows may be apart: pixels of the boxes, or a share of them, and a share of the score. The
# weights of the first convolution are not the exported ones, and deep networks enlarge what
# rounding changes.
TOLERANCE = (0.1, 1e-3, 1e-2)
HALF_TOLERANCE = (2.0, 1e-2, 5e-2)  # in float16
LOOKED_UP = 50  # rows of each image


def verify(path: Path, folded: Folded | None = None) -> None:
    """Load a detector in ONNX Runtime and run it at batch 1 and 4.

    Args:
        path: The detector.
        folded: What it was made of; then its candidates are also compared with those of the model
            as it was exported, run on single images that were normalised outside of the graph.

    Raises:
        DetectorImportError: It does not load, its rows break the contract, an image's candidates
            depend on the batch it is in, or they are not the exported model's.
    """
    half = folded is not None and folded.raw.dtype == TensorProto.FLOAT16
    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        shape = session.get_inputs()[0].shape
        images = smooth_images(4, (shape[2], shape[1]))
        (together,) = session.run(["candidates"], {"images": images})
        alone = [session.run(["candidates"], {"images": image[None]})[0][0] for image in images]
    except (*ORT_ERRORS, IndexError, TypeError, ValueError) as error:
        raise DetectorImportError(f"{path} does not run in ONNX Runtime: {error}") from error
    # Sorted by logit: the sigmoids of neighbours may differ by a rounding error.
    if not (np.isfinite(together).all() and (np.diff(together[..., 4], axis=1) <= 1e-6).all()):
        raise DetectorImportError(f"{path}: candidates are not finite and sorted by score")
    for single, batched in zip(alone, together, strict=True):
        if not _holds(batched, single, half):
            raise DetectorImportError(f"{path}: batch 4 and batch 1 give different candidates")
    if folded is not None:
        for expected, found in zip(exported_candidates(folded, images), together, strict=True):
            if not _holds(found, expected, half):
                raise DetectorImportError(
                    f"{path}: the candidates are not those of the model as it was exported"
                )


def exported_candidates(folded: Folded, images: Array) -> Array:
    """What the exported model gives: normalised in NumPy, run as it came, decoded apart.

    Args:
        folded: The detector and what it was made of.
        images: uint8 [N, H, W, 3], RGB.

    Returns:
        float32 [N, 300, 6].
    """
    raw = folded.raw
    group = raw.batch or 1
    missing = -len(images) % group
    filled = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
    inputs = as_model_takes(filled, raw, folded.settings)
    outputs = run_grouped(raw.model, raw.image, inputs, group)
    wanted = {info.name: outputs[info.name] for info in folded.decoder.graph.input}
    candidates: Array = run(folded.decoder, wanted)["candidates"]
    return candidates[: len(images)]


def smooth_images(count: int, size_wh: tuple[int, int], seed: int = 0) -> Array:
    """Blobs of colour, which networks see different things in; in noise they see nothing.

    Args:
        count: How many.
        size_wh: Width and height in pixels.
        seed: Of the random numbers.

    Returns:
        uint8 [N, H, W, 3].
    """
    rng = np.random.default_rng(seed)
    images = np.empty((count, size_wh[1], size_wh[0], 3), np.uint8)
    for image in images:
        blobs = cv2.resize(rng.uniform(0, 255, (6, 6, 3)), size_wh, interpolation=cv2.INTER_CUBIC)
        image[:] = (blobs + rng.normal(0, 12, blobs.shape)).clip(0, 255)
    return images


def _holds(rows: Array, wanted: Array, half: bool) -> bool:
    """Whether the best of the wanted rows are there.

    Rows of equal score may change places, and which of those that tie with the last are in is
    chance.
    """
    pixels, share, score = HALF_TOLERANCE if half else TOLERANCE
    best = wanted[:LOOKED_UP, None]
    allowed = pixels + share * np.abs(best)
    allowed[..., 4], allowed[..., 5] = score * best[..., 4] + 1e-6, 0
    near = (np.abs(rows[None] - best) <= allowed).all(axis=2).any(axis=1)
    ties = best[:, 0, 4] <= wanted[-1, 4] * (1 + score)
    return bool((near | ties).all())
