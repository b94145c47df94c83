"""Put a detector into a model repository; by default SSDLite-MobileNetV2, fetched and imported.

Without an ensemble of that name, one is made for the model: its configurations come from the
metadata of the model's file. With one, the model becomes its next version, if it fits: the same
input, resizing and labels. Triton serves the newest version, and a running one takes it when the
model is loaded anew. --list, --rollback and --remove work on a repository without a model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from assembly import (
        DEFAULT_ENSEMBLE,
        ENGINES,
        Installed,
        NotCheckableError,
        Serving,
        check_served,
        install,
        list_ensembles,
        model_names,
        remove,
        roll_back,
    )
    from detserve.repository import DetectorRepository, RepositoryError
    from families import DetectorImportError
    from fetch_model import DEFAULT_DESTINATION, FetchError, fetch_coco_ssd
    from import_detector import import_coco_ssd
    from tfjs_format import TfjsImportError
except ModuleNotFoundError as error:
    if error.name != "onnx":
        raise
    message = "error: reading detectors needs onnx: pip install 'detserve[model]'"
    raise SystemExit(message) from None  # which goes to stderr, with the status 1

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_MODEL = ROOT / "build/models/coco-ssd/model.onnx"


def _version(text: str) -> int | None:
    if text != "next" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a number or 'next' is wanted, not {text!r}")
    return None if text == "next" else int(text)


def _delay(text: str) -> int | str:
    if text != "off" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"microseconds or 'off' are wanted, not {text!r}")
    return text if text == "off" else int(text)


def build_parser() -> argparse.ArgumentParser:
    """Define the command line."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=details)
    parser.add_argument(
        "model",
        type=Path,
        nargs="?",
        metavar="MODEL",
        help="ONNX detector, images -> candidates, as scripts/import_detector.py makes it, or a"
        " TensorRT plan; default: the default detector as version 1",
    )
    parser.add_argument(
        "--repository",
        type=Path,
        default=ROOT / "model_repository",
        metavar="DIR",
        help="model repository; one that is missing or empty is made (default: %(default)s)",
    )
    parser.add_argument(
        "--ensemble",
        metavar="NAME",
        help="the ensemble to put it into. One that is not there is made, with the models"
        f" NAME_preprocess, NAME_detector and NAME_postprocess (default: {DEFAULT_ENSEMBLE})",
    )
    parser.add_argument(
        "--engine",
        choices=list(ENGINES),
        help="what runs it (default: the ensemble's, and onnxruntime for a new one)",
    )
    parser.add_argument(
        "--version",
        type=_version,
        metavar="N",
        help="number of the version, greater than those there are, or next (default: next)",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="configure the ensemble anew for a model that does not fit it; --rollback brings the"
        " configurations back",
    )
    parser.add_argument(
        "--info",
        type=Path,
        metavar="ONNX",
        help="the ONNX file that a plan was built from, for a plan without the record that"
        " scripts/build_plan.py writes beside it",
    )
    parser.add_argument(
        "--keep",
        type=int,
        default=2,
        metavar="K",
        help="versions to keep, the new one included; older ones are removed, but for"
        " the one that is served (default: %(default)s)",
    )
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        help="start a Triton on a copy and detect with it before anything is changed, which takes"
        " a few seconds (default: for a MODEL, if the Triton here has the engine)",
    )
    serving = parser.add_argument_group("serving", "for an ensemble that is there: what to change")
    serving.add_argument(
        "--instances", type=int, metavar="N", help="instances of the detector (default: 2)"
    )
    serving.add_argument(
        "--kind",
        choices=("auto", "cpu", "gpu"),
        help="where they run; auto is the GPU where there is one (default: auto for onnxruntime,"
        " cpu for openvino, gpu for tensorrt)",
    )
    serving.add_argument(
        "--max-batch",
        type=int,
        metavar="N",
        help="greatest batch of a request, in images (default: 16; for a plan that of its profile)",
    )
    serving.add_argument(
        "--dynamic-batching",
        type=_delay,
        nargs="?",
        const=0,
        metavar="US",
        help="run requests together that wait for the detector; each may wait US microseconds"
        " more for others (0 without a number), or off (default: 0 on a GPU, off elsewhere)",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="show ensembles and versions")
    action.add_argument(
        "--rollback",
        action="store_true",
        help="set the ensemble's newest version aside as retired-N, so that the one before is"
        " served; what a promotion has replaced, scripts/promote.py --rollback brings back",
    )
    action.add_argument(
        "--remove",
        action="store_true",
        help="remove the ensemble given by --ensemble, and its models that no other one has",
    )
    return parser


def add_default(repository: Path, ensemble: str) -> Installed | None:
    """Fetch and import the default detector, and make it version 1 of the ensemble.

    Returns:
        What was done; None if another detector is served there, which is left as it is.
    """
    if (served := _another(repository, ensemble)) is not None:
        print(f"{served} is served: left as it is", file=sys.stderr)
        return None
    folder = fetch_coco_ssd(DEFAULT_DESTINATION)
    print("Importing SSDLite-MobileNetV2 to ONNX", file=sys.stderr)
    import_coco_ssd(folder, DEFAULT_MODEL)
    return install(DEFAULT_MODEL, repository, ensemble=ensemble, version=1, overwrite=True)


def _another(repository: Path, ensemble: str) -> str | None:
    """What an ensemble serves, if that is not the detector that `add_default` has put there."""
    if not (repository / ensemble / "config.pbtxt").is_file():
        return None
    current = DetectorRepository(repository, ensemble)
    name, version = current.detector.name, current.served_version()
    if version is None or (name, version) == (model_names(ensemble).detector, 1):
        return None
    return f"Version {version} of {name}"


def add_model(args: argparse.Namespace, ensemble: str) -> Installed:
    """Put the model of the command line into the repository."""

    def check(repository: Path, name: str) -> None:
        try:
            check_served(repository, name)
        except NotCheckableError as error:
            if args.check:
                raise
            print(f"Not tried out: {error}", file=sys.stderr)

    return install(
        args.model,
        args.repository,
        ensemble=ensemble,
        engine=args.engine,
        version=args.version,
        serving=Serving(
            instances=args.instances,
            kind=args.kind,
            max_batch=args.max_batch,
            dynamic_batching=args.dynamic_batching,
        ),
        source=args.info,
        replace_configs=args.replace,
        keep=args.keep,
        check=None if args.check is False else check,
    )


def report(done: Installed) -> None:
    """Say what has changed."""
    size = done.path.stat().st_size / 1e6
    for path in done.changed:
        print(f"Wrote {path}", file=sys.stderr)
    print(f"Installed {done.path} ({size:.1f} MB), for {done.engine}", file=sys.stderr)
    for version in done.pruned:
        print(f"Removed version {version}", file=sys.stderr)
    if done.served is None:
        print("No version is served: the configurations name another", file=sys.stderr)
    elif done.served != done.version:
        print(f"Version {done.served} stays the one that is served", file=sys.stderr)


def show(repository: Path) -> None:
    """Print the ensembles and their versions."""
    for item in list_ensembles(repository):
        if item.version is None or item.written is None:
            print(f"{item.ensemble:16} -      {item.engine:12} {item.about}")
            continue
        mark = "*" if item.served else " "
        print(
            f"{item.ensemble:16} {item.version:4}{mark} {item.engine:12}"
            f" {item.megabytes:7.1f} MB  {item.written:%Y-%m-%d %H:%M} UTC  {item.about}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    action = next((name for name in ("list", "rollback", "remove") if getattr(args, name)), None)
    if action is not None and args.model is not None:
        parser.error(f"--{action} takes no MODEL")
    if action == "remove" and args.ensemble is None:
        parser.error("--remove needs --ensemble NAME")
    ensemble: str = args.ensemble or DEFAULT_ENSEMBLE
    try:
        if action == "list":
            show(args.repository)
        elif action == "rollback":
            retired, served = roll_back(args.repository, ensemble)
            print(f"Version {served} is served again; {retired} is set aside", file=sys.stderr)
        elif action == "remove":
            print(f"Removed {', '.join(remove(args.repository, ensemble))}", file=sys.stderr)
        elif done := (
            add_default(args.repository, ensemble)
            if args.model is None
            else add_model(args, ensemble)
        ):
            report(done)
    except (FetchError, TfjsImportError, DetectorImportError, RepositoryError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
