"""Compare the ensemble with other ways to serve the same detector, in one run on the same photos.

The peers are a plain Flask service (one queue, one worker thread) and LitServe, each the best of
several settings that are tried first, and the in-process limit: the pipeline with as many
processes as cores. All decode every image, run the same file and suppress overlaps by the same
code; a peer that answers something else is refused. One side at a time is asked, the peers over
HTTP with connections kept open, the ensemble by the client library over gRPC, in closed loops of
the same process. Rounds alternate between the sides, and ratios are taken within each round.

Beside it two more ensembles serve the same file in the OpenVINO backend and the detector's INT8
variant. Written are compare.json and compare.png. It takes about a quarter of an hour on two
cores; --no-trials, fewer --rounds and shorter --seconds shorten it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmark import median_of, stage_models
from contract import ContractError
from detserve.engines import EngineError
from detserve.repository import DetectorRepository, RepositoryError
from evaluation import DatasetError, EvaluationError
from local_server import ServerError, TritonServer
from machine import processor_name
from optimization import OptimizationError
from peers.errors import ComparisonError
from peers.process import PeerProcess
from peers.report import print_report, save_plot
from peers.rounds import Plan, best_setting, measure_rounds
from peers.settings import PEERS, settings_of
from peers.sides import EnsembleSide, PeerSide, Side, agreement, check_same_answers
from peers.summary import as_dicts, claims, summarise
from peers.variant import Variant, int8_variant, with_engine, with_variant
from photos import PHOTOS, jpeg

ROOT = Path(__file__).resolve().parent.parent
ENSEMBLE, OVER_HTTP = "ensemble", "ensemble, HTTP"
OPENVINO, INT8 = "ensemble, OpenVINO", "ensemble, INT8"
# An idle Triton asks its own models now and then: seldom enough here to take nothing from others.
CHECK_INTERVAL_S = 10.0


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Do all measurements and put the results together.

    Args:
        arguments: Of the command line.
        folder: An existing folder for what is needed meanwhile.
    """
    repository: Path = arguments.model_repository
    photos = [jpeg(name) for name in PHOTOS]
    if arguments.images:
        photos = [path.read_bytes() for path in sorted(arguments.images.glob("*.jpg"))]
        if not photos:
            raise ComparisonError(f"there are no .jpg files in {arguments.images}")
    plan = Plan(
        photos=photos, concurrency=sorted(set(arguments.concurrency)), rounds=arguments.rounds,
        seconds=arguments.seconds, warm_up=min(1.0, arguments.seconds),
    )  # fmt: skip
    variant = _variant(arguments)
    cores = len(os.sched_getaffinity(0))
    openvino = arguments.openvino and DetectorRepository(repository).backend != "openvino"
    sides_count = 1 + len(arguments.peers) + arguments.http + openvino + (variant is not None)
    trials = 2 * arguments.trials * sum(len(settings_of(peer, cores)) for peer in arguments.peers)
    steps = trials + plan.rounds * (1 + sides_count * len(plan.concurrency))
    settings: dict[str, Any] = {}
    notes: dict[str, list[str]] = {}
    with (
        tqdm(total=steps, desc="compare", unit="run", file=sys.stderr, disable=None) as progress,
        ExitStack() as running,
    ):
        chosen = []
        for peer in arguments.peers:
            tried: dict[str, float] = {}
            setting = settings_of(peer, cores)[0]
            if arguments.trials:
                setting, tried = best_setting(peer, repository, plan, progress.update)
            settings[PEERS[peer]] = {"used": setting.title, "tried": tried}
            chosen.append(setting)
        ensemble = _ensemble(ENSEMBLE, repository, running)
        sides: list[Side] = [ensemble]
        if arguments.http:
            sides.append(
                EnsembleSide(OVER_HTTP, ensemble.server, ensemble.models, ensemble.server.http_url)
            )
        if openvino:
            with_engine(repository, "openvino", folder / "openvino")
            sides.append(other := _ensemble(OPENVINO, folder / "openvino", running))
            notes[OPENVINO] = [agreement(ensemble, other, photos)]
        if variant is not None:
            with_variant(repository, variant, folder / "int8")
            sides.append(_ensemble(INT8, folder / "int8", running))
            notes[INT8] = list(variant.notes)
        for setting in chosen:
            process = running.enter_context(PeerProcess(setting, repository))
            peer_side = PeerSide(PEERS[setting.peer], process)
            check_same_answers(ensemble, peer_side, photos)
            sides.append(peer_side)
        rounds = measure_rounds(sides, repository, plan, progress.update)
    others = {"limit": "limit", **{peer: PEERS[peer] for peer in arguments.peers}}
    summary = summarise(rounds, plan.concurrency, others)
    ensembles = [name for name in (ENSEMBLE, OVER_HTTP, OPENVINO, INT8) if name in summary]
    return {
        "machine": {"cores": cores, "processor": processor_name()},
        "photos": {"count": len(photos), "mean_bytes": statistics.mean(map(len, photos))},
        "seconds": plan.seconds,
        "rounds_count": plan.rounds,
        "concurrency": list(plan.concurrency),
        "settings": settings,
        "notes": notes,
        "limit": median_of([one["limit"] for one in rounds]),
        "sides": summary,
        "claims": as_dicts(claims(summary, ensembles)),
        "rounds": rounds,
    }


def _variant(arguments: argparse.Namespace) -> Variant | None:
    if arguments.variant == "none":
        return None
    if arguments.variant == "int8":
        model = DetectorRepository(arguments.model_repository).model_file()
        return int8_variant(model, arguments.calibration, ROOT / "build/compare")
    return Variant(Path(arguments.variant), (f"served is {arguments.variant}",))


def _ensemble(name: str, repository: Path, running: ExitStack) -> EnsembleSide:
    server = running.enter_context(
        TritonServer(
            repository,
            http_port=0,
            grpc_port=0,
            metrics_port=0,
            health_port=0,
            check_interval=CHECK_INTERVAL_S,
        )
    )
    return EnsembleSide(name, server, stage_models(repository), server.grpc_url)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of 1 or more is wanted, not {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--model-repository", type=Path, default=ROOT / "model_repository", metavar="DIR",
        help="what the ensemble serves, and what the peers take the pipeline from",
    )  # fmt: skip
    add("--images", type=Path, metavar="DIR", help="folder of .jpg files; default: four photos")
    add("--concurrency", type=_positive, nargs="+", default=[1, 2, 4, 8, 16], metavar="N")
    add("--seconds", type=float, default=5, help="length of one measurement (default %(default)s)")
    add(
        "--rounds", type=_positive, default=3,
        help="the medians over them are reported (default %(default)s)",
    )  # fmt: skip
    add(
        "--peers", nargs="*", choices=list(PEERS), default=list(PEERS),
        help="which to compare with (default: all)",
    )  # fmt: skip
    add(
        "--no-trials", dest="trials", action="store_false",
        help="take each peer's first setting instead of trying several",
    )  # fmt: skip
    add("--http", action="store_true", help="ask the ensemble over HTTP too")
    add(
        "--no-openvino", dest="openvino", action="store_false",
        help="leave out the ensemble that serves the same file in the OpenVINO backend",
    )  # fmt: skip
    add(
        "--variant", default="int8", metavar="int8|none|ONNX",
        help="what the last ensemble serves: int8 is made of the detector, or taken from"
        " build/compare if it was made before; or the file of a variant of yours (default int8)",
    )  # fmt: skip
    add(
        "--calibration", type=Path, metavar="DIR",
        help="images to calibrate int8 with; default: the four photos",
    )  # fmt: skip
    add(
        "--check", action="store_true",
        help="exit with 1 if the ensemble is not ahead of the peers as it should be",
    )  # fmt: skip
    add(
        "--output", type=Path, default=Path("compare_output"), metavar="DIR",
        help="where the results go (default %(default)s)",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.seconds <= 0:
        parser.error("--seconds must be over 0")
    wanted = [*arguments.peers, *(["openvino"] if arguments.openvino else [])]
    missing = [package for package in wanted if importlib.util.find_spec(package) is None]
    if missing:
        parser.error(
            f"not installed: {', '.join(missing)}; pip install 'detserve[compare,openvino]'"
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up in either case
    try:
        with tempfile.TemporaryDirectory(prefix="detserve-compare-") as folder:
            results = run(arguments, Path(folder))
        arguments.output.mkdir(parents=True, exist_ok=True)
        json_path = arguments.output / "compare.json"
        json_path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        save_plot(results, arguments.output / "compare.png")
    except (
        ComparisonError, ContractError, DatasetError, EngineError, EvaluationError,
        OptimizationError, RepositoryError, ServerError, OSError,
    ) as error:  # fmt: skip
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    print_report(results)
    for claim in results["claims"]:
        print(claim["sentence"])
    print(f"Saved {json_path} and compare.png", file=sys.stderr)
    failed = not all(claim["held"] for claim in results["claims"])
    return int(arguments.check and failed)


if __name__ == "__main__":
    raise SystemExit(main())
