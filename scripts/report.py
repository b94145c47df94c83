"""Measure every variant of a detector in one run, and name the one to serve on this machine.

Each variant (cleaned, FP16, INT8, pruned, combinations) is made from the detector, evaluated, and
run in every engine of this machine. Speeds are measured in rounds, each variant once a round, so
that a machine that drifts drifts for all. The recommended variant is then served by a real Triton.

Written are report.md, report.json and report.png.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from contract import ContractError
from detserve.engines import EngineError
from detserve.repository import RepositoryError
from evaluation import DatasetError, EvaluationError
from local_server import ServerError
from optimization import OptimizationError
from reporting.measure import MeasureError
from reporting.run import ReportOptions, make_report
from reporting.variants import VARIANTS
from reporting.write import write_report

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_MODEL = ROOT / "build/models/coco-ssd/model.onnx"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", type=Path, nargs="?", default=DEFAULT_MODEL,
        help="float32 detector, as scripts/import_detector.py writes it; default: the default one",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=Path, metavar="DIR",
        help="labelled images; without them the four photos of the demo, on which variants can be"
        " held against the detector itself only",
    )  # fmt: skip
    parser.add_argument(
        "--annotations", type=Path, metavar="PATH",
        help="their COCO JSON, or folder of YOLO labels; default: labels/ beside images/",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", type=Path, metavar="DIR",
        help="images to calibrate INT8 and choose channels with; default: every fourth of --images,"
        " and the accuracy is that on the rest",
    )  # fmt: skip
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME",
        help=f"which to make besides the detector itself, out of: {', '.join(VARIANTS)}",
    )  # fmt: skip
    parser.add_argument(
        "--engines", nargs="+", choices=("onnxruntime", "openvino"),
        default=["onnxruntime", "openvino"], help="what to run them in (default both)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="medians over so many (default 3)")
    parser.add_argument(
        "--seconds", type=float, default=3, help="length of one measurement (default 3)"
    )
    parser.add_argument(
        "--max-drop", type=float, default=0.01, help="mAP that may be lost (default 0.01)"
    )
    parser.add_argument(
        "--no-serve", dest="serve", action="store_false", help="leave Triton out of it"
    )
    parser.add_argument("--output", type=Path, default=Path("report_output"), metavar="DIR")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.seconds <= 0 or args.max_drop < 0:
        parser.error("--rounds must be 1 or more, --seconds over 0, --max-drop not negative")
    options = ReportOptions(
        images=args.images, annotations=args.annotations, calibration=args.calibration,
        variants=tuple(args.variants), engines=tuple(args.engines), rounds=args.rounds,
        seconds=args.seconds, max_drop=args.max_drop, serve=args.serve,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up in either case
    try:
        with tempfile.TemporaryDirectory(prefix="detserve-report-") as folder:
            report = make_report(args.model, Path(folder), options)
        paths = write_report(report, args.output)
    except (
        ContractError, DatasetError, EngineError, EvaluationError, MeasureError, OptimizationError,
        RepositoryError, ServerError, OSError,
    ) as error:  # fmt: skip
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: no report was written", file=sys.stderr)
        return 130
    print(paths[0].read_text(encoding="utf-8"))
    print(f"Saved {', '.join(map(str, paths))}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
