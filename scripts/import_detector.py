"""Fold everything model-specific into a detector's graph.

Every detector that Triton serves has one contract, whatever family it is of: `images` UINT8
[N, H, W, 3] (RGB, resized to the model's input) in, `candidates` FP32 [N, 300, 6] out, rows of
x1 y1 x2 y2 in input pixels, score and class, sorted by descending score. Normalisation, layout,
box decoding, class map and top-k are part of the graph, so one preprocess and one postprocess
serve every family.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError

from contract import DetectorInfo
from detserve.engines import ORT_ERRORS
from families import FAMILIES, DetectorImportError
from fetch_model import COCO_SSD
from import_tfjs import COCO_SSD_CUT, import_graph
from tfjs_format import TfjsImportError


def fold(raw: onnx.ModelProto, family: str, source: str = "") -> onnx.ModelProto:
    """Turn a raw detector into one that serves the pipeline's contract.

    Args:
        raw: The model as exported or imported, with its family's raw outputs.
        family: Key of `FAMILIES`.
        source: Where the model comes from (package and version), kept in the file's metadata.

    Returns:
        A checked model. The same arguments give the same bytes.

    Raises:
        DetectorImportError: The family is unknown, or the graph is not what the family expects.
    """
    if family not in FAMILIES:
        raise DetectorImportError(f"unknown family {family!r}: choose from {sorted(FAMILIES)}")
    try:
        onnx.checker.check_model(raw)
    except onnx.checker.ValidationError as error:
        raise DetectorImportError(f"the raw model is not valid ONNX: {error}") from error
    model = FAMILIES[family].fold(raw)
    info = replace(
        DetectorInfo.of(model), family=family, source=source, resize=FAMILIES[family].resize
    )
    info.write_to(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def verify(path: Path) -> None:
    """Load the model in ONNX Runtime and run it at batch 1 and 4.

    Raises:
        DetectorImportError: It does not load, its rows break the contract, or an image's
            candidates depend on the batch it is in.
    """
    try:
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        shape = session.get_inputs()[0].shape
        images = np.random.default_rng(0).integers(0, 256, (4, *shape[1:]), np.uint8)
        (batch,) = session.run(["candidates"], {"images": images})
        singles = [
            session.run(["candidates"], {"images": images[i : i + 1]})[0][0] for i in range(4)
        ]
    except (*ORT_ERRORS, IndexError, TypeError, ValueError) as error:
        raise DetectorImportError(f"{path} does not run in ONNX Runtime: {error}") from error
    # Sorted by logit: the sigmoids of neighbours may differ by a rounding error.
    if not (np.isfinite(batch).all() and (np.diff(batch[..., 4], axis=1) <= 1e-6).all()):
        raise DetectorImportError(f"{path}: candidates are not finite and sorted by score")
    for single, batched in zip(singles, batch, strict=True):
        # Rows of almost equal scores may change places, so look each one up.
        distances = np.abs(single[:50, None] - batched[None]).max(axis=2).min(axis=1)
        if distances.max() > 1e-2:
            raise DetectorImportError(f"{path}: batch 4 and batch 1 give different candidates")


def save(model: onnx.ModelProto, path: Path, check: Callable[[Path], None] | None = None) -> None:
    """Write a model in one step: complete and, if `check` is given, found good by it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        if check is not None:
            check(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def import_coco_ssd(tfjs_dir: Path, out_path: Path) -> Path:
    """Make the default detector: TensorFlow.js SSDLite-MobileNetV2 to a served ONNX model.

    Args:
        tfjs_dir: Folder of the GraphModel, as `fetch_model.fetch_coco_ssd` leaves it.
        out_path: ONNX file to write; the raw detector goes beside it as `raw.onnx`.

    Returns:
        `out_path`.

    Raises:
        TfjsImportError: The GraphModel cannot be imported.
        DetectorImportError: The import does not give a detector that runs.
    """
    raw = import_graph(tfjs_dir, COCO_SSD_CUT)
    save(raw, out_path.with_name("raw.onnx"))
    save(fold(raw, "ssd", COCO_SSD.spec), out_path, verify)
    return out_path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "raw", type=Path, help="raw ONNX detector, or the folder that fetch_model filled"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="ONNX file to write")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="ssd")
    parser.add_argument("--source", default="", help="package and version, for the metadata")
    args = parser.parse_args(argv)
    try:
        if args.raw.is_dir():
            import_coco_ssd(args.raw, args.output)
        else:
            save(fold(onnx.load(args.raw), args.family, args.source), args.output, verify)
    except (DetectorImportError, TfjsImportError, DecodeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {args.output} ({args.output.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
