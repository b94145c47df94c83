"""Tune a served ensemble to this machine, by measuring it with encoded images.

Tried are the instances of each step, the detector's threads, dynamic batching (delay, preferred
and greatest batch) and, with a limit for p99, the limits of queues: one after another, each value
against what is in place, on two running servers by turns. A value is kept if it is better by more
than the noise, twice. At the end the tuned ensemble is held against the one at the start.

The output folder gets measurements.jsonl, report.md, report.json, report.png and model_repository/,
the ensemble with tuned configurations. Nothing else is changed unless --apply is given. The same
command goes on with a run that was interrupted.

Exit status: 0 if the ensemble was tuned or nothing better was found, 1 after an error, 3 if the
limit for p99 is kept at no load, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from detserve.repository import RepositoryError
from local_server import ServerError
from machine import processor_name
from photos import PHOTOS, jpeg
from tuning.bench import TritonBench
from tuning.candidates import Machine
from tuning.compare import Options
from tuning.journal import Journal, JournalError, read_log
from tuning.measuring import LoggedBench, TrialError
from tuning.report import print_report, write_report
from tuning.result import Result, describe
from tuning.search import Limits, Search
from tuning.settings import Plan, read_plan
from tuning.workspace import Workspace

LOG = "measurements.jsonl"
SLO_MISSED = 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--p99-ms", type=float, metavar="MS",
        help="greatest throughput with p99 up to this; default: greatest throughput")  # fmt: skip
    add("--budget", type=float, default=10, metavar="MINUTES",
        help="what measuring may take (default 10)")  # fmt: skip
    add("--model-repository", type=Path, default=Path("model_repository"), metavar="DIR")
    add("--ensemble", default="detection", help="which to tune (default detection)")
    add("--images", type=Path, metavar="DIR", help=".jpg files to ask with; default: four photos")
    add("--settings", nargs="+", default=[], metavar="NAME",
        help="try those alone whose names begin so, such as detector.")  # fmt: skip
    add("--from-defaults", action="store_true",
        help="begin with Triton's defaults (one instance a step, no batching but where there is a"
        " queue policy), not with the configurations as they are")  # fmt: skip
    add("--min-instances", type=int, default=2, metavar="N",
        help="of every step (default 2: one that dies is not all that there is)")  # fmt: skip
    add("--kind", choices=("auto", "cpu", "gpu"), default="auto",
        help="where the detector runs; default: by its configuration")  # fmt: skip
    add("--max-concurrency", type=int, metavar="N",
        help="greatest load; default: 8 for every core, 16 at least and 64 at most")  # fmt: skip
    add("--seconds", type=float, default=1.5, help="length of a measurement (default 1.5)")
    add("--rounds", type=int, default=4, help="measurements of each side (default 4)")
    add("--final-rounds", type=int, default=5, help="the same, at the end (default 5)")
    add("--margin", type=float, default=0.02,
        help="gain that is wanted at least; more if the noise is more (default 0.02)")  # fmt: skip
    add("--seed", type=int, default=1, help="for the order of turns and moments of requests")
    add("--output", type=Path, default=Path("tune_output"), metavar="DIR")
    add("--fresh", action="store_true", help="start over, whatever the log has")
    add("--report-only", action="store_true", help="make the report anew from the log")
    add("--apply", action="store_true",
        help="write the tuned configurations into the model repository itself; what they replace"
        " is kept in the output folder")  # fmt: skip
    return parser


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.p99_ms is not None and args.p99_ms <= 0:
        parser.error("--p99-ms must be above 0")
    if min(args.budget, args.seconds) <= 0 or args.margin < 0:
        parser.error("--budget and --seconds must be above 0, --margin not negative")
    if min(args.rounds, args.final_rounds, args.min_instances) < 1:
        parser.error("--rounds, --final-rounds and --min-instances must be 1 or more")
    if args.max_concurrency is not None and args.max_concurrency < 1:
        parser.error("--max-concurrency must be 1 or more")
    if args.report_only and (args.apply or args.fresh):
        parser.error("--report-only goes without --apply and --fresh: the command that measured,"
                     " run again with --apply, measures nothing again")  # fmt: skip


def _photos(folder: Path | None) -> list[bytes]:
    if folder is None:
        return [jpeg(name) for name in PHOTOS]
    photos = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    if not photos:
        raise RepositoryError(f"there are no .jpg files in {folder}")
    return photos


def _defaults(plan: Plan, machine: Machine) -> Plan:
    """The same as Triton has it where nothing is said; queue policies stay."""
    changed = dict(plan)
    for name in plan:
        stage, _, what = name.partition(".")
        if what == "instances":
            changed[name] = 1
        elif what == "threads":
            changed[name] = "auto"
        elif what == "batching_delay_us" and stage not in machine.kept_batching:
            changed[name] = "off"
        elif what == "preferred_batch_size" and stage not in machine.kept_batching:
            changed[name] = ""
    return changed


def _header(
    args: argparse.Namespace, workspace: Workspace, machine: Machine, photos: list[bytes]
) -> dict[str, Any]:
    """What a run has to have the same to go on with another's log."""
    configurations = hashlib.sha256("\0".join(workspace.texts.values()).encode())
    return {
        "ensemble": args.ensemble,
        "backend": machine.backend,
        "kind": machine.kind,
        "cores": machine.cores,
        "processor": processor_name(),
        "photos": len(photos),
        "photos_sha256": hashlib.sha256(b"".join(photos)).hexdigest(),
        "configurations_sha256": configurations.hexdigest(),
        "from_defaults": args.from_defaults,
        "min_instances": args.min_instances,
        "options": vars(_options(args)),
        "limits": {**vars(_limits(args, machine)), "only": args.settings},
    }


def _options(args: argparse.Namespace) -> Options:
    return Options(
        p99_ms=args.p99_ms, seconds=args.seconds, rounds=args.rounds, margin=args.margin,
        seed=args.seed,
    )  # fmt: skip


def _limits(args: argparse.Namespace, machine: Machine) -> Limits:
    return Limits(
        budget_s=60 * args.budget,
        max_concurrency=args.max_concurrency or min(64, max(16, 8 * machine.cores)),
        only=tuple(args.settings),
        final_rounds=args.final_rounds,
    )


def _same_run(log: Path, header: dict[str, Any]) -> None:
    """Refuse to go on with the log of a run that was asked for something else."""
    if not log.is_file():
        return
    records, _ = read_log(log)
    if not records:
        return
    before = records[0]["value"]
    other = sorted(
        name.removesuffix("_sha256") for name in header if before.get(name) != header[name]
    )
    if other:
        raise JournalError(
            f"{log} is the log of a run with other {', '.join(other)}: pass --fresh to start over,"
            " or another --output"
        )


def _unused(folder: Path) -> Path:
    """The folder, or where it is there the first of its name and a number that is not."""
    found, number = folder, 1
    while found.exists():
        number += 1
        found = folder.with_name(f"{folder.name}-{number}")
    return found


def _advance(progress: Any) -> Callable[[float], None]:
    def advance(took_s: float) -> None:
        progress.update(took_s)

    return advance


def tune(args: argparse.Namespace) -> Result:
    """Tune, or go on with it; write the tuned configurations."""
    workspace = Workspace(args.model_repository, args.ensemble)
    machine = Machine.of(workspace.repository, workspace.configs, args.kind, args.min_instances)
    for name in args.settings:
        if not any(known.startswith(name) for known in workspace.settings):
            raise RepositoryError(
                f"no setting begins with {name!r}; there are {', '.join(workspace.settings)}"
            )
    photos = _photos(args.images)
    start = read_plan(workspace.settings.values(), workspace.configs)
    if args.from_defaults:
        start = _defaults(start, machine)
    header = _header(args, workspace, machine, photos)
    log: Path = args.output / LOG
    if args.fresh:
        log.unlink(missing_ok=True)
    _same_run(log, header)
    with (
        Journal(log) as journal,
        TritonBench(workspace, photos, args.p99_ms, args.seed) as bench,
        tqdm(total=round(60 * args.budget), desc="tune", unit="s", file=sys.stderr, disable=None,
             bar_format="{desc} {bar} {n:.0f}/{total:.0f} s") as progress,
    ):  # fmt: skip
        journal.record("header", {}, lambda: header)
        progress.set_description("what the start finds in the photos")
        found = journal.record("found", {}, lambda: {"photos": bench.find(start)})
        bench.expected = found["photos"]
        search = Search(
            LoggedBench(bench, journal, _advance(progress)),
            machine, start, _options(args), _limits(args, machine),
            tell=progress.set_description,
            report=lambda step: tqdm.write(describe(step), file=sys.stderr),
        )  # fmt: skip
        search.run()
        diff = journal.record("diff", {}, lambda: {"text": workspace.diff(search.plan)})
    workspace.save(search.plan, args.output / "model_repository")
    if args.apply:
        backup = _unused(args.output / "replaced")
        changed = workspace.apply(search.plan, backup)
        print(diff["text"] or "Nothing to change.")
        if changed:
            print(f"Changed {', '.join(map(str, changed))}; what they were is in {backup}")
            print("A server that runs takes them when it is started anew.")
    return Result.of(read_log(log)[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    _check(parser, args)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up in either case
    try:
        if args.report_only:
            result = Result.of(read_log(args.output / LOG)[0])
            if not result.header:
                raise JournalError(f"{args.output / LOG} is empty: nothing has been measured yet")
        else:
            result = tune(args)
        paths = write_report(result, args.output)
    except (JournalError, RepositoryError, ServerError, TrialError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    print_report(result)
    print(f"Saved {', '.join(map(str, paths))}", file=sys.stderr)
    return 0 if result.keeps_slo else SLO_MISSED


if __name__ == "__main__":
    raise SystemExit(main())
