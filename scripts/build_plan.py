"""Build a TensorRT plan from a detector in ONNX, for the GPU and the TensorRT of this machine.

The model is one of the pipeline's contract, as scripts/import_detector.py and scripts/optimize.py
write it. Its precision is the file's own: FP32 as imported, FP16 or INT8 from scripts/optimize.py.
A plan runs in the TensorRT version and on the kind of GPU that it was built with. Beside it goes a
record, model.plan.json, of what it was built from.

With --module tensorrt_rtx the same steps run on a machine without a GPU. That shows that TensorRT's
parser and builder take the model and that the repository's configuration agrees with it, and no
more: what comes out runs in TensorRT-RTX alone and is named *.rtx.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from detserve.engines import EngineError, find_gpu, read_plan_header
from plan import (
    HARDWARE_LEVELS,
    MODULES,
    PlanBuilder,
    PlanError,
    PlanOptions,
    PlanRecord,
    check_config,
)
from plan.model import precision_of, read_detector
from plan.options import output_error, plan_suffix
from plan.record import file_sha256, record_path
from plan.serving import config_of


def build_plan(
    model: Path,
    output: Path,
    options: PlanOptions,
    *,
    module: str = "tensorrt",
    config: Path | None = None,
    check_only: bool = False,
    show_progress: bool = False,
) -> tuple[PlanRecord | None, list[str]]:
    """Build a plan and its record.

    Args:
        model: ONNX detector of the pipeline's contract.
        output: The plan's file: `*.plan`, or `*.rtx` with `tensorrt_rtx`.
        options: What to build it with.
        module: `tensorrt` or `tensorrt_rtx`.
        config: A `config.pbtxt` that has to serve the plan; without it the one beside the
            output's version folder is compared, if there is one, and differences are warnings.
        check_only: Stop before the build: only parse and compare.
        show_progress: Whether to show a progress bar on a terminal.

    Returns:
        The record, None with `check_only`, and warnings.

    Raises:
        PlanError: The model cannot be built, or the configuration does not serve it; nothing is
            written then.
    """
    wrong_name = output_error(output, module)
    if wrong_name:
        raise PlanError(wrong_name)
    options.check(module)
    graph, detector = read_detector(model)
    builder = PlanBuilder(module)
    tensors = builder.parse(model)
    warnings: list[str] = []
    near = config_of(output) if config is None else config
    if near is not None:
        # A configuration always names the file that Triton loads, whatever checks it here.
        served_name = output.name if module == "tensorrt" else "model.plan"
        try:
            check_config(near, tensors, options.batch, served_name)
        except PlanError as error:
            if config is not None:
                raise
            warnings.append(str(error))
    if check_only:
        return None, warnings + builder.take_warnings()
    _check_writable(output)
    plan = builder.build(options, show_progress=show_progress)
    temporary = output.with_name(output.name + ".tmp")
    record_file = record_path(output)
    temporary_record = record_file.with_name(record_file.name + ".tmp")
    try:
        temporary.write_bytes(plan)
        _check_header(temporary, module, builder.version)
        record = PlanRecord(
            plan_sha256=file_sha256(temporary),
            module=module,
            version=builder.version,
            model=model.name,
            model_sha256=file_sha256(model),
            detector=detector,
            precision=precision_of(graph),
            options=options.to_json(),
            gpu=_gpu(),
        )
        temporary_record.write_text(record.to_json(), encoding="utf-8")
        temporary_record.replace(record_file)
        temporary.replace(output)
    except OSError as error:
        raise PlanError(f"cannot write {output}: {error.strerror}") from error
    finally:
        for path in (temporary, temporary_record):
            path.unlink(missing_ok=True)
    return record, warnings + builder.take_warnings()


def _check_writable(output: Path) -> None:
    """Fail before the build, which may take minutes, rather than after it."""
    temporary = output.with_name(output.name + ".tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise PlanError(f"cannot write {output}: {error.strerror}") from error
    if output.is_dir():
        raise PlanError(f"cannot write {output}: it is a folder; name a file in it")


def _check_header(path: Path, module: str, version: str) -> None:
    try:
        header = read_plan_header(path)
    except EngineError as error:
        raise PlanError(
            f"{module} {version} has written something else than a plan: {error}"
        ) from (error)
    if header.module != module or not header.built_by(version):
        raise PlanError(f"{module} {version} has written a plan of {header}")


def _gpu() -> dict[str, str] | None:
    try:
        gpu = find_gpu()
    except EngineError:
        return None
    return asdict(gpu)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    what, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="ONNX detector, images -> candidates")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="plan to write (default: beside the model, named model.plan, or model.rtx with"
        " --module tensorrt_rtx)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        nargs=3,
        default=PlanOptions.batch,
        metavar=("MIN", "OPT", "MAX"),
        help="least batch, the one to be fastest at, and greatest batch, in images (default 1 4 8)",
    )
    parser.add_argument(
        "--workspace-mb",
        type=int,
        metavar="MIB",
        help="GPU memory that layers may use for scratch, in MiB (default: all there is)",
    )
    parser.add_argument(
        "--timing-cache",
        type=Path,
        metavar="FILE",
        help="file of kernel timings, read if it is there and extended: later builds are faster and"
        " choose the same kernels (default: none)",
    )
    parser.add_argument(
        "--sparsity",
        action="store_true",
        help="allow sparse kernels where weights are pruned 2:4 (default: dense kernels only)",
    )
    parser.add_argument(
        "--version-compatible",
        action="store_true",
        help="let later TensorRTs of the same major version run the plan, somewhat slower; Triton"
        " needs --backend-config=tensorrt,version-compatible=true (default: this version only)",
    )
    parser.add_argument(
        "--hardware-compatible",
        choices=HARDWARE_LEVELS,
        default="none",
        help="let other GPUs run the plan, somewhat slower: those of Ampere and later, or those of"
        " the same compute capability (default: none, this kind only)",
    )
    parser.add_argument(
        "--optimization-level",
        type=int,
        metavar="LEVEL",
        help="how long to search for fast kernels, 0 to 5 (default: TensorRT's, 3)",
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="CONFIG_PBTXT",
        help="a model's configuration that has to serve the plan: backend, tensors, types,"
        " dimensions and batches are compared before the build (default: the output's own, if it"
        " is written into a version folder of a repository, and then differences only warn)",
    )
    parser.add_argument(
        "--module",
        choices=MODULES,
        default="tensorrt",
        help="Python module that builds; tensorrt_rtx needs no GPU (default tensorrt)",
    )
    parser.add_argument(
        "--unless",
        type=Path,
        metavar="FOLDER",
        help="do nothing where this folder is there, as a release of models that has its plan",
    )
    parser.add_argument(
        "--check-only", action="store_true", help="parse and compare, but build nothing"
    )
    args = parser.parse_args(argv)
    if args.unless is not None and args.unless.is_dir():
        print(f"{args.unless} is there already: no plan is built")
        return 0
    output = args.output or args.model.with_suffix(plan_suffix(args.module))
    options = PlanOptions(
        batch=tuple(args.batch),
        workspace_mib=args.workspace_mb,
        timing_cache=args.timing_cache,
        sparsity=args.sparsity,
        version_compatible=args.version_compatible,
        hardware_compatibility=args.hardware_compatible,
        optimization_level=args.optimization_level,
    )
    try:
        record, warnings = build_plan(
            args.model,
            output,
            options,
            module=args.module,
            config=args.config,
            check_only=args.check_only,
            show_progress=True,
        )
    except PlanError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if record is None:
        print(f"{args.module} takes {args.model}")
        return 0
    header = read_plan_header(output)
    print(
        f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB, {record.precision}, batch"
        f" {' '.join(map(str, record.batch))}, {header},"
        f" {record.gpu['name'] if record.gpu else 'no GPU'}) and {record_path(output).name}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
