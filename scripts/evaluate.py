"""Evaluate a detector on labelled images: COCO's mAP, and gates that fail when it is too low.

Takes a detector's file (in this process), the folder of a model repository (the pipeline it
serves, in this process) or the address of a running server (through the whole ensemble).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from detection_client import DetectionClientError
from detserve.engines import EngineError
from detserve.repository import RepositoryError
from evaluation import (
    Dataset,
    DatasetError,
    Evaluation,
    EvaluationError,
    EvaluationSettings,
    evaluate_source,
    load_dataset,
)

ENGINES = ("onnxruntime", "openvino", "tensorrt")
_METRICS = (
    ("mAP", "map", "over the IoUs 0.50 to 0.95"),
    ("mAP50", "map50", "at an IoU of 0.50"),
    ("mAP75", "map75", "at an IoU of 0.75"),
    ("mAP small", "map_small", "objects under 32² px"),
    ("mAP medium", "map_medium", "32² to 96² px"),
    ("mAP large", "map_large", "over 96² px"),
    ("recall", "recall", "mean greatest recall"),
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source",
        help="MODEL.onnx (or MODEL.plan with --engine tensorrt), MODEL_REPOSITORY/,"
        " grpc://HOST:PORT or http://HOST:PORT",
    )
    data = parser.add_argument_group("labelled images")
    data.add_argument(
        "--images", type=Path, required=True, metavar="DIR", help="folder, searched to its depth"
    )
    data.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE|DIR",
        help="COCO's instances_*.json, or a folder of YOLO label files (default: the folder"
        " `labels` in place of `images`, else .txt files beside the images)",
    )
    data.add_argument("--limit", type=int, metavar="N", help="take the first N images by name")
    run = parser.add_argument_group("how to run it")
    run.add_argument(
        "--ensemble",
        default="detection",
        metavar="NAME",
        help="ensemble of a repository or server (%(default)s)",
    )
    run.add_argument(
        "--engine",
        default="onnxruntime",
        choices=ENGINES,
        help="what runs a file (%(default)s)",
    )
    run.add_argument(
        "--concurrency",
        type=int,
        metavar="N",
        help="images under way at once (default: one a core; 4 for a server)",
    )
    run.add_argument(
        "--score-threshold",
        type=float,
        default=EvaluationSettings.score_threshold,
        metavar="S",
        help="lowest score that counts, 0 to 1 (%(default)s: the mean is taken over all recalls)",
    )
    run.add_argument(
        "--iou-threshold",
        type=float,
        metavar="IOU",
        help="overlap above which a box is suppressed, 0 to 1 (default: the detector's own, as it"
        " is served; published figures often use 0.6 to 0.7)",
    )
    gates = parser.add_argument_group("gates: exit status 1 when one fails")
    gates.add_argument("--min-map", type=float, metavar="X", help="lowest mAP that passes, 0 to 1")
    gates.add_argument(
        "--reference",
        metavar="SOURCE|JSON",
        help="compare with another source on the same images, or with what --json wrote",
    )
    gates.add_argument(
        "--reference-engine", choices=ENGINES, help="what runs it if it is a file (--engine)"
    )
    gates.add_argument(
        "--reference-ensemble",
        metavar="NAME",
        help="its ensemble if it is a repository or a server (--ensemble)",
    )
    gates.add_argument(
        "--max-drop",
        type=float,
        metavar="X",
        help="most mAP that may be lost against --reference, such as 0.01",
    )
    gates.add_argument(
        "--max-failures",
        type=int,
        default=0,
        metavar="N",
        help="most images without an answer (%(default)s); their objects count as missed",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--per-class", action="store_true", help="show a table of the classes too")
    output.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    return parser


def _checked(argv: Sequence[str] | None) -> argparse.Namespace:
    command = parser()
    args = command.parse_args(argv)
    for name in ("min_map", "max_drop", "score_threshold", "iou_threshold"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            command.error(f"--{name.replace('_', '-')} must be between 0 and 1, got {value:g}")
    for name in ("limit", "concurrency"):
        value = getattr(args, name)
        if value is not None and value < 1:
            command.error(f"--{name} must be at least 1, got {value}")
    for name in ("max_drop", "reference_engine", "reference_ensemble"):
        if getattr(args, name) is not None and args.reference is None:
            command.error(f"--{name.replace('_', '-')} needs --reference: what to compare with")
    return args


def _evaluate(
    source: str, dataset: Dataset, args: argparse.Namespace, engine: str, ensemble: str
) -> Evaluation:
    settings = EvaluationSettings(
        score_threshold=args.score_threshold, iou_threshold=args.iou_threshold
    )
    return evaluate_source(
        source,
        dataset,
        settings,
        ensemble=ensemble,
        engine=engine,
        concurrency=args.concurrency,
    )


def _read_result(path: Path) -> Evaluation:
    try:
        return Evaluation.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, EvaluationError) as error:
        raise EvaluationError(f"{path} cannot be the reference: {error}") from error


def gates(result: Evaluation, reference: Evaluation | None, args: argparse.Namespace) -> list[str]:
    """What did not pass, a sentence each.

    Raises:
        EvaluationError: The reference cannot be compared with.
    """
    failed = []
    if len(result.failures) > args.max_failures:
        name, why = result.failures[0]
        failed.append(
            f"{len(result.failures)} of {result.images} images got no answer, at most"
            f" {args.max_failures} may: {name}: {why}"
        )
    if args.min_map is not None and result.map < args.min_map:
        failed.append(
            f"mAP {result.map:.4f} is {args.min_map - result.map:.4f} under the least allowed,"
            f" {args.min_map:g}"
        )
    if reference is not None and len(reference.failures) > args.max_failures:
        name, why = reference.failures[0]
        failed.append(
            f"the reference {reference.source} gave no answer for {len(reference.failures)} of"
            f" {reference.images} images, at most {args.max_failures} may: {name}: {why}"
        )
    if reference is not None and args.max_drop is not None:
        drop = result.drop_from(reference)
        if drop > args.max_drop + 1e-9:  # differences of decimals are not exact
            failed.append(
                f"mAP {result.map:.4f} is {drop:.4f} under {reference.source}'s"
                f" {reference.map:.4f}; at most {args.max_drop:g} is allowed"
            )
    return failed


def _show(result: Evaluation, reference: Evaluation | None, *, per_class: bool) -> None:
    console = Console()
    console.print(
        f"{result.source}: {result.images} images, {result.objects} objects,"
        f" {result.detections} detections",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    table = Table()
    for column in ("metric", "", *_value_columns(reference)):
        table.add_column(column, justify="left" if column in ("metric", "") else "right")
    for name, key, meaning in _METRICS:
        table.add_row(
            name,
            meaning,
            *_values(getattr(result, key), getattr(reference, key) if reference else None),
        )
    console.print(table)
    if reference is not None:
        console.print(
            f"reference: {reference.source}", highlight=False, markup=False, soft_wrap=True
        )
    if per_class:
        console.print(_class_table(result, reference))


def _class_table(result: Evaluation, reference: Evaluation | None) -> Table:
    table = Table(title="by class, the best first")
    table.add_column("class")
    for column in ("objects", "images", "mAP50", *_value_columns(reference, "mAP")):
        table.add_column(column, justify="right")
    theirs = {entry.name: entry.map for entry in reference.per_class} if reference else {}
    for entry in sorted(result.per_class, key=lambda e: -e.map):
        values = _values(entry.map, theirs.get(entry.name) if reference else None)
        row = (str(entry.objects), str(entry.images), f"{entry.map50:.3f}", *values)
        table.add_row(entry.name, *row)
    return table


def _value_columns(reference: Evaluation | None, name: str = "value") -> tuple[str, ...]:
    return (name, "reference", "change") if reference else (name,)


def _values(ours: float | None, theirs: float | None) -> tuple[str, ...]:
    if ours is None:
        return ("none",)
    if theirs is None:
        return (f"{ours:.4f}",)
    return f"{ours:.4f}", f"{theirs:.4f}", f"{ours - theirs:+.4f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    args = _checked(argv)
    try:
        reference = None
        if args.reference is not None and args.reference.endswith(".json"):
            reference = _read_result(Path(args.reference))
        dataset = load_dataset(args.images, args.annotations, args.limit)
        result = _evaluate(args.source, dataset, args, args.engine, args.ensemble)
        for note in result.notes:
            print(f"note: {note}", file=sys.stderr)
        if args.reference is not None and reference is None:
            reference = _evaluate(
                args.reference,
                dataset,
                args,
                args.reference_engine or args.engine,
                args.reference_ensemble or args.ensemble,
            )
        if reference is not None:
            result.drop_from(reference)  # refuses to show what cannot be compared
        if args.json is not None:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
        _show(result, reference, per_class=args.per_class)
        failed = gates(result, reference, args)
    except (
        DatasetError, EvaluationError, EngineError, RepositoryError, DetectionClientError, OSError,
    ) as error:  # fmt: skip
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    for reason in failed:
        print(f"error: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
