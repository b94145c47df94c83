"""Promote a detector: walk it from its file to what a running server answers with.

Imports the model if it is as it was exported, optimises it if asked to, evaluates it against what
the server answers now, builds it beside the current version, loads it there under a name of its
own, asks it through the server, and gives it the public name in one step: requests go on being
answered, each by the old version or by the new one. Where a gate fails, at any time, the server
goes on with what it had.

The server is one of `python -m local_server` (make serve) of the same user and machine, or another
Triton with --model-control-mode=explicit whose model repository is at hand (--repository).
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from assembly import ENGINES, Serving
from contract import ContractError
from detection_client import DetectionClientError
from detserve.engines import EngineError
from detserve.repository import RepositoryError
from evaluation import DatasetError, EvaluationError
from families import FAMILIES
from promotion import Limits, Order, Outcome, PromotionError, promote, roll_back
from promotion.exam import Images


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?", help="ONNX detector, or TensorRT plan")
    parser.add_argument(
        "--rollback",
        action="store_true",
        help="go back to the version before the current one, in place of promoting a model",
    )
    where = parser.add_argument_group("where")
    where.add_argument(
        "--server",
        default=Order.server,
        metavar="URL",
        help="the running server, grpc://HOST:PORT or http://HOST:PORT (%(default)s)",
    )
    where.add_argument("--ensemble", default="detection", help="its public name (%(default)s)")
    where.add_argument(
        "--repository",
        type=Path,
        metavar="DIR",
        help="its model repository, as seen from here (default: what a server of ours says;"
        " needed with any other)",
    )
    where.add_argument(
        "--control-header",
        type=_header,
        metavar="NAME:VALUE",
        help="what another Triton wants from who loads models, as in its option"
        " --grpc-restricted-protocol=model-repository:NAME=VALUE",
    )
    where.add_argument(
        "--load-timeout",
        type=float,
        default=Order.load_timeout,
        metavar="S",
        help="most seconds that loading a model may take (%(default)g)",
    )
    model = parser.add_argument_group("the model")
    model.add_argument(
        "--family",
        choices=sorted(FAMILIES),
        metavar="NAME",
        help="of a file as it was exported (default: recognised by its outputs); what more there"
        " is to say of it scripts/import_detector.py takes",
    )
    model.add_argument("--source", default="", help="where it comes from, for its metadata")
    model.add_argument(
        "--optimize",
        choices=("none", "clean", "fp16", "int8"),
        default="none",
        help="what to do to it after the import; scripts/optimize.py can do more (%(default)s)",
    )
    model.add_argument(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="folder of images for int8, others than --images",
    )
    model.add_argument(
        "--engine", choices=sorted(ENGINES), help="what serves it (default: as the current one)"
    )
    model.add_argument(
        "--instances", type=int, metavar="N", help="instances of it (default: as now)"
    )
    data = parser.add_argument_group("images to examine it with")
    data.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of images. With labels, COCO's mAP counts; without, the agreement with what"
        " the current version is sure of",
    )
    data.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE|DIR",
        help="COCO's instances_*.json, or a folder of YOLO label files (default: the folder"
        " `labels` in place of `images`, else .txt files beside the images)",
    )
    data.add_argument("--limit", type=int, metavar="N", help="take the first N images by name")
    data.add_argument(
        "--check-images",
        type=int,
        default=Images.again,
        metavar="N",
        help="images asked again after the switch, under the public name (%(default)s)",
    )
    data.add_argument(
        "--concurrency",
        type=int,
        default=Images.concurrency,
        metavar="N",
        help="requests in flight (%(default)s)",
    )
    data.add_argument(
        "--no-evaluate", action="store_true", help="a few smoke inferences only, no accuracy"
    )
    data.add_argument(
        "--no-local",
        action="store_true",
        help="do not evaluate the file in this process first; a plan never is",
    )
    gates = parser.add_argument_group("gates, each with exit status 1")
    gates.add_argument(
        "--max-drop",
        type=_fraction,
        default=Limits.max_drop,
        metavar="X",
        help="most mAP that may be lost against the current version (%(default)s)",
    )
    gates.add_argument(
        "--no-compare",
        action="store_true",
        help="do not compare with the current version, as where the classes are others",
    )
    gates.add_argument("--min-map", type=_fraction, metavar="X", help="lowest mAP that passes")
    gates.add_argument(
        "--min-agreement",
        type=_fraction,
        default=Images.agreement,
        metavar="X",
        help="lowest mAP against the current version's answers, without labels (%(default)s)",
    )
    gates.add_argument(
        "--max-failures",
        type=int,
        default=Limits.max_failures,
        metavar="N",
        help="most images without an answer (%(default)s)",
    )
    gates.add_argument(
        "--smoke-timeout",
        type=float,
        default=Images.smoke_timeout,
        metavar="S",
        help="most seconds that a smoke inference may take (%(default)g)",
    )
    run = parser.add_argument_group("how")
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="evaluate in process and build, but change nothing on the server or on disk",
    )
    run.add_argument("--yes", action="store_true", help="do not ask before the switch")
    run.add_argument("--json", type=Path, metavar="FILE", help="write a report there")
    return parser


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"it must be between 0 and 1, got {text}")
    return value


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not (name and colon and value):
        raise argparse.ArgumentTypeError(f"it must be NAME:VALUE, got {text!r}")
    return name, value


def _checked(argv: Sequence[str] | None) -> argparse.Namespace:
    command = parser()
    args = command.parse_args(argv)
    if args.rollback == (args.model is not None):
        command.error("give either a model or --rollback")
    if args.model is not None and args.images is None and not args.no_evaluate:
        command.error("give --images to evaluate with, or --no-evaluate for smoke inferences only")
    if args.images is None and args.annotations is not None:
        command.error("--annotations are those of --images")
    if (args.optimize == "int8") != (args.calibration is not None):
        command.error("--optimize int8 and --calibration DIR go together")
    for name in ("limit", "check_images", "concurrency", "instances"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            command.error(f"--{name.replace('_', '-')} must be at least 1")
    return args


def _order(args: argparse.Namespace) -> Order:
    images = Images(
        folder=args.images,
        annotations=args.annotations,
        limit=args.limit,
        again=args.check_images,
        concurrency=args.concurrency,
        agreement=args.min_agreement,
        smoke_only=args.no_evaluate or args.rollback,
        smoke_timeout=args.smoke_timeout,
    )
    limits = Limits(
        max_drop=None if args.no_compare else args.max_drop,
        min_map=args.min_map,
        max_failures=args.max_failures,
    )
    return Order(
        server=args.server,
        repository=args.repository,
        ensemble=args.ensemble,
        control_header=args.control_header,
        load_timeout=args.load_timeout,
        images=images,
        limits=limits,
        in_process=not args.no_local,
        family=args.family,
        source=args.source,
        optimize=args.optimize,
        calibration=args.calibration,
        engine=args.engine,
        serving=Serving(instances=args.instances),
        dry_run=args.dry_run,
        confirm=None if args.yes or not sys.stdin.isatty() else _ask,
    )


def _ask(question: str) -> bool:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt  # so that what is half done is undone


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    args = _checked(argv)
    outcome, problem, status = Outcome(), None, 0
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        if args.rollback:
            roll_back(_order(args), outcome)
        else:
            promote(args.model, _order(args), outcome)
    except (
        PromotionError, RepositoryError, ContractError, EngineError, DatasetError,
        EvaluationError, DetectionClientError, OSError,
    ) as error:  # fmt: skip
        problem, status = str(error), 1
    except KeyboardInterrupt:
        problem, status = "interrupted", 130
    finally:
        signal.signal(signal.SIGTERM, before)
    serving = f"generation {outcome.serving} ({', '.join(outcome.models)})"
    if args.json is not None:
        report = {**outcome.to_dict(), "error": problem}
        try:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            print(f"error: the report cannot be written: {error}", file=sys.stderr)
            status = status or 1
    if problem is not None:
        print(f"error: {problem}", file=sys.stderr)
        if outcome.serving is not None:
            still = "now" if outcome.changed else "still"
            print(f"{args.ensemble} {still} is {serving}", file=sys.stderr)
        return status
    print(f"{args.ensemble} is {serving}" + ("" if outcome.changed else ", as before"))
    return status


if __name__ == "__main__":
    raise SystemExit(main())
