"""The command line of the export."""

from __future__ import annotations

import argparse
import ast
import math
from pathlib import Path
from typing import Any

from pixel_arguments import scale, size, three

__all__ = ["OPSETS", "make_parser"]

# Operator sets: what the exporters of PyTorch 2.13 write without converting, from the oldest that
# scripts/import_detector.py reads. The first is the default: what every runtime of this project
# takes.
OPSETS = {"torchscript": (17, range(11, 21)), "dynamo": (18, range(18, 24))}


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def _tolerance(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no tolerance: give a number from 0 up")
    return value


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no count: give a whole number from 1 up")
    return int(text)


def make_parser(description: str) -> argparse.ArgumentParser:
    """The parser of scripts/export_onnx.py; the first line of the description is its summary."""
    # fmt: off
    summary, _, rest = description.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "factory", metavar="PACKAGE.MODULE:FACTORY",
        help="function or class that returns the torch.nn.Module; the current directory is"
        " importable",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="ONNX file to write")
    parser.add_argument(
        "--factory-arg", type=_pair, nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="keyword arguments of the factory; values as Python writes them, else strings",
    )

    weights = parser.add_argument_group("weights")
    weights.add_argument(
        "--checkpoint", type=Path, metavar="FILE",
        help="safetensors, or a state dict as torch.save wrote it; no code in it is run (default:"
        " the weights that the factory gives)",
    )
    weights.add_argument(
        "--key",
        help="where in the file the weights are, as model or ema.module (default: at its"
        " top, or under the one usual key that is there)",
    )
    weights.add_argument(
        "--unsafe-pickle", "--pickle", action="store_true",
        help="read a file that holds whole objects; THIS RUNS CODE IN THE FILE: only for files"
        " whose maker you trust",
    )
    weights.add_argument(
        "--allow-missing", action="store_true",
        help="keep the factory's values where the checkpoint has none (default: an error)",
    )
    weights.add_argument(
        "--allow-unexpected", action="store_true",
        help="leave out tensors that the module has no place for (default: an error)",
    )

    output = parser.add_argument_group("export")
    output.add_argument(
        "--exporter", choices=list(OPSETS), default="torchscript",
        help="which of PyTorch's exporters: torchscript (the older one) is quicker, writes opset 17"
        " and takes code that dynamo cannot give a dynamic batch, RT-DETR's in transformers for"
        " one (default torchscript)",
    )
    output.add_argument(
        "--opset", type=int,
        help="ONNX operator set: "
        + ", ".join(f"{n} {r[0]} to {r[-1]} (default {d})" for n, (d, r) in OPSETS.items()),
    )
    output.add_argument(
        "--outputs", nargs="+", metavar="NAME",
        help="which of the module's outputs, by the names that they have in dictionaries and"
        " dataclasses, else output_0, output_1 (default: logits and pred_boxes where a module has"
        " both, else all)",
    )

    images = parser.add_argument_group(
        "images", "What the module was trained on, so that it is compared on what it knows."
    )
    images.add_argument(
        "--input-size", type=size, default=(640, 640), metavar="WxH", dest="input_size_wh",
        help="width and height in pixels, such as 416 or 640x384 (default 640)",
    )
    images.add_argument(
        "--input-order", choices=("rgb", "bgr"), default="rgb", help="of the channels (default rgb)"
    )
    images.add_argument(
        "--mean", type=three, default=(0.0, 0.0, 0.0), metavar="NUMBERS",
        help="subtracted from pixels of 0 to 255: one number, or three in the module's order, as"
        " 123.7,116.3,103.5 (default 0)",
    )
    images.add_argument(
        "--std", "--scale", type=scale, default=(255.0, 255.0, 255.0), metavar="NUMBERS",
        help="what the difference is divided by, in the same units (default 255, which gives 0"
        " to 1)",
    )
    images.add_argument(
        "--resize", choices=("letterbox", "stretch"), default="letterbox",
        help="keep the aspect ratio and pad, or fill the input (default letterbox)",
    )
    images.add_argument(
        "--anchor", choices=("center", "top-left"), default="center",
        help="where a letterboxed image lies (default center)",
    )
    images.add_argument(
        "--pad-value", type=int, default=114, help="grey of the padding, 0 to 255 (default 114)"
    )
    images.add_argument(
        "--images", type=Path, metavar="DIR",
        help="folder of images to compare on (default: the four photos of the demo)",
    )
    images.add_argument(
        "--count", type=_count, default=8, help="how many of them at most (default 8)"
    )

    proof = parser.add_argument_group("comparison")
    proof.add_argument(
        "--tolerance", type=_tolerance, default=1e-4, metavar="ABSOLUTE",
        help="what a value may differ by, in its own unit (default 1e-4)",
    )
    proof.add_argument(
        "--relative-tolerance", type=_tolerance, default=1e-4, metavar="SHARE",
        help="plus this share of the expected value (default 1e-4)",
    )
    proof.add_argument(
        "--rounding", type=_tolerance, default=4.0, metavar="TIMES",
        help="where that is exceeded, so many times what float32 itself rounds by on that image is"
        " tolerated too, measured by running the module in float64; 0 tolerates none (default 4)",
    )
    proof.add_argument(
        "--unordered", action="store_true",
        help="the rows of outputs [N, Q, ...] are a set, as the queries of a DETR: almost equal"
        " ones may change places",
    )
    # fmt: on
    return parser
