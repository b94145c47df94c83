"""Make a detector smaller or faster: graph clean-up, pruning, and float16 or int8.

The steps are taken in this order, whatever the order of the options. Every result is checked: valid
ONNX, still a detector of the contract, and the same candidates alone and in a batch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx

from contract import ContractError, DetectorInfo, load_model
from detserve.engines import EngineError
from evaluation import DatasetError, EvaluationError, load_dataset
from families import DetectorImportError
from families.checking import verify
from import_detector import save
from optimization import OptimizationError
from optimization.calibration import METHODS
from optimization.int8 import FORMS
from optimization.post_training import Int8Options
from optimization.pruning import PruningError
from optimization.steps import Pruning, StepReport, optimize

__all__ = ["OPTIMIZE_ERRORS", "Pruning", "StepReport", "optimize", "save_optimized"]

# What the functions here raise; each says what was wrong.
OPTIMIZE_ERRORS = (
    ContractError, DatasetError, DetectorImportError, EngineError, EvaluationError,
    OptimizationError, PruningError, OSError,
)  # fmt: skip


def save_optimized(model: onnx.ModelProto, path: Path) -> None:
    """Write a detector, if it is found good.

    Raises:
        OptimizationError: It is not valid ONNX.
        ContractError: It is no detector of the contract any more.
        DetectorImportError: It does not run, or not the same alone and in a batch.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise OptimizationError(f"the result is not valid ONNX: {error}") from error
    DetectorInfo.of(model)
    save(model, path, verify)


def _pruning(text: str) -> Pruning:
    try:
        return Pruning.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is none of l1:0.5 (share of the weights), 2:4 and channels:0.3 (share of the"
            " multiplications)"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", type=Path, help="float32 detector, as scripts/import_detector.py writes it"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="ONNX file to write")
    steps = parser.add_argument_group("steps")
    steps.add_argument(
        "--clean", action="store_true",
        help="fold constants, merge and fuse nodes; ONNX Runtime does that itself at every load",
    )  # fmt: skip
    steps.add_argument(
        "--prune", type=_pruning, metavar="HOW",
        help="l1:0.5 zeroes half of the weights, 2:4 two of every four, channels:0.3 removes 30%%"
        " of the multiplications",
    )  # fmt: skip
    steps.add_argument("--fp16", action="store_true", help="float16, for TensorRT")
    steps.add_argument(
        "--int8", action="store_true",
        help="static quantisation; layers that cost more accuracy than --max-drop stay in float",
    )  # fmt: skip
    int8 = parser.add_argument_group("int8")
    int8.add_argument(
        "--target", choices=sorted(FORMS), default="onnxruntime",
        help="the runtime it is for: each fuses another form (default %(default)s)",
    )  # fmt: skip
    int8.add_argument(
        "--calibration", type=Path, metavar="DIR",
        help="folder of images like those that will be served; needed for --int8, and what"
        " --prune channels chooses by",
    )  # fmt: skip
    int8.add_argument(
        "--calibration-images", type=int, default=Int8Options.images, metavar="N",
        help="how many of them for --int8, evenly spread over the names (default %(default)s)",
    )  # fmt: skip
    int8.add_argument(
        "--method", choices=sorted(METHODS), default=Int8Options.method,
        help="how the range of a tensor is chosen (default %(default)s)",
    )  # fmt: skip
    int8.add_argument(
        "--images", type=Path, metavar="DIR",
        help="labelled images to measure mAP on; without them it is agreement with the float"
        " detector, on images of --calibration",
    )  # fmt: skip
    int8.add_argument(
        "--annotations", type=Path, metavar="PATH",
        help="their COCO JSON, or folder of YOLO labels; default: labels/ beside images/",
    )  # fmt: skip
    int8.add_argument(
        "--limit", type=int, metavar="N", help="measure on the first N of --images (default: all)"
    )
    int8.add_argument(
        "--max-drop", type=float, metavar="X",
        help="most mAP, or agreement, that may be lost, 0 to 1 (default 0.01 and 0.1)",
    )  # fmt: skip
    int8.add_argument(
        "--sensitivity", type=Path, metavar="FILE",
        help="measure every layer, whether needed or not, and write the table as JSON",
    )  # fmt: skip
    return parser


def _checked(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    args = parser.parse_args(argv)
    if not (args.clean or args.prune or args.fp16 or args.int8):
        parser.error("nothing to do: give --clean, --prune, --fp16 or --int8")
    if args.fp16 and args.int8:
        parser.error("--fp16 and --int8 exclude each other")
    if args.int8 and args.calibration is None:
        parser.error("--int8 needs --calibration DIR: images to find the tensors' ranges on")
    if not args.int8:
        for name in ("images", "annotations", "limit", "max_drop", "sensitivity"):
            if getattr(args, name) is not None:
                parser.error(f"--{name.replace('_', '-')} is for --int8")
    for name in ("annotations", "limit"):
        if getattr(args, name) is not None and args.images is None:
            parser.error(f"--{name} needs --images DIR")
    for name in ("calibration_images", "limit"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.max_drop is not None and not 0 <= args.max_drop <= 1:
        parser.error(f"--max-drop must be between 0 and 1, got {args.max_drop:g}")
    return args


def _int8_options(args: argparse.Namespace) -> Int8Options:
    dataset = None
    if args.images is not None:
        dataset = load_dataset(args.images, args.annotations, args.limit)
    return Int8Options(
        calibration=args.calibration, images=args.calibration_images, target=args.target,
        method=args.method, dataset=dataset, max_drop=args.max_drop,
        rank=args.sensitivity is not None,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    args = _checked(argv)
    try:
        model, _ = load_model(args.model)
        if args.sensitivity is not None:  # before the minutes that it takes
            args.sensitivity.parent.mkdir(parents=True, exist_ok=True)
        model, reports, result = optimize(
            model, clean_graph=args.clean, pruning=args.prune, fp16=args.fp16,
            int8=_int8_options(args) if args.int8 else None, calibration=args.calibration,
        )  # fmt: skip
        save_optimized(model, args.output)
        if result is not None and args.sensitivity is not None:
            args.sensitivity.write_text(json.dumps(result.table(), indent=1), encoding="utf-8")
    except OPTIMIZE_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    for report in reports:
        (before, after), (mb, mb_after) = report.nodes, report.size_mb
        print(f"{report.step}: {before} to {after} nodes, {mb:.1f} to {mb_after:.1f} MB")
        for note in report.notes:
            print(f"  {note}")
    print(f"wrote {args.output}: {DetectorInfo.of(model).variant}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
