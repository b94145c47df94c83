"""Export a PyTorch detector to ONNX, and prove that the file is the same detector.

The module comes from a factory of yours, its weights from a checkpoint. The file takes `images`
float32 [N, 3, H, W] just as the module does: scripts/import_detector.py folds normalisation and
box decoding into it afterwards.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from detserve.imaging import PreprocessSettings
from exporting.arguments import OPSETS, make_parser
from exporting.compare import Tolerance
from exporting.errors import ExportError, require
from exporting.samples import ImageForm, read_samples


def choose_opset(exporter: str, opset: int | None) -> int:
    """The operator set to export in.

    Raises:
        ExportError: The exporter does not write that one.
    """
    default, possible = OPSETS[exporter]
    if opset is None:
        return default
    if opset not in possible:
        others = [name for name, (_, opsets) in OPSETS.items() if opset in opsets]
        raise ExportError(
            f"opset {opset} is out of range: the {exporter} exporter writes {possible[0]} to"
            f" {possible[-1]}" + "".join(f"; --exporter {name} writes {opset}" for name in others)
        )
    return opset


def export(args: argparse.Namespace) -> None:
    """Do what the command line asks for.

    Raises:
        ExportError: Something is wrong with what was given, or the file would not be the same
            detector; no file is written then.
    """
    opset = choose_opset(args.exporter, args.opset)
    require(["torch", "onnx", *(["onnxscript"] if args.exporter == "dynamo" else [])])
    form = _image_form(args)
    names, images = read_samples(args.images, form, args.count)

    import torch

    from exporting.checkpoint import load_weights, read_state_dict
    from exporting.convert import convert
    from exporting.factory import build_module
    from exporting.outputs import FlatModule
    from exporting.verify import BATCHES, verify

    _say(f"building {args.factory}")
    module = build_module(args.factory, dict(args.factory_arg))
    if args.checkpoint is None:
        _say("no --checkpoint: the weights are as the factory made them")
    else:
        if args.unsafe_pickle:
            _say(f"warning: --unsafe-pickle runs whatever code {args.checkpoint} holds")
        weights = read_state_dict(args.checkpoint, key=args.key, unsafe_pickle=args.unsafe_pickle)
        load_weights(
            module, weights,
            allow_missing=args.allow_missing, allow_unexpected=args.allow_unexpected,
        )  # fmt: skip
        _say(f"loaded {len(weights)} tensors from {args.checkpoint}")
    example = torch.from_numpy(images[[0, -1]])
    flat = FlatModule(module, example, args.outputs).eval()
    if flat.left_out:
        _say(f"left out: {', '.join(flat.left_out)} (--outputs chooses)")
    _say(f"exporting {', '.join(flat.names)} in opset {opset} ({args.exporter})")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output.parent, prefix=".export-") as folder:
        path = Path(folder) / args.output.name
        model = convert(flat, example, path, exporter=args.exporter, opset=opset)
        _say(f"checked: {len(model.graph.node)} nodes, valid ONNX, the batch is dynamic")
        tolerance = Tolerance(args.tolerance, args.relative_tolerance)
        proof = verify(
            path, flat, names, images, tolerance,
            rounding_times=args.rounding, unordered=args.unordered,
        )  # fmt: skip
        path.replace(args.output)
    print(
        f"PyTorch and ONNX Runtime on {proof.images} images at batch"
        f" {' and '.join(map(str, BATCHES))}, tolerance {tolerance.absolute:g} +"
        f" {tolerance.relative:g} x value:"
    )
    shapes = {
        output.name: [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim]
        for output in model.graph.output
    }
    for name, worst in proof.worst.items():
        shape = ", ".join(map(str, shapes[name]))
        print(
            f"  {name} [{shape}]: greatest difference {worst.greatest:.2g},"
            f" {worst.share:.0%} of the tolerance"
        )
    if proof.rounding:
        print(
            f"  float32 alone rounds by up to {proof.rounding:.2g} (PyTorch against itself in"
            f" float64), of which {args.rounding:g} times was tolerated"
        )
    if proof.moved:
        print(f"  {proof.moved} rows changed places")
    print(f"wrote {args.output} ({args.output.stat().st_size / 1e6:.1f} MB)")
    _say(f"next: {_next_command(args)}\n  (it recognises the family, or --family names it)")


def _next_command(args: argparse.Namespace) -> str:
    """How the file is imported, with what the user said about the module's images."""
    words = ["python", "scripts/import_detector.py", str(args.output), "-o", "detector.onnx"]
    parser = make_parser("")
    for name in ("input_order", "mean", "std", "resize", "anchor", "pad_value"):
        value = getattr(args, name)
        if value != parser.get_default(name):
            text = ",".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)
            words.append(f"--{name.replace('_', '-')}={text}")
    return shlex.join(words)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _image_form(args: argparse.Namespace) -> ImageForm:
    width, height = args.input_size_wh
    try:
        settings = PreprocessSettings(
            width=width, height=height, resize=args.resize, anchor=args.anchor,
            pad_value=args.pad_value,
        )  # fmt: skip
    except ValueError as error:
        raise ExportError(str(error)) from error
    return ImageForm(settings=settings, order=args.input_order, mean=args.mean, std=args.std)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    args = make_parser(__doc__ or "").parse_args(argv)
    try:
        export(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ExportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
