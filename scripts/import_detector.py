"""Fold everything model-specific into a detector's graph.

Every detector that Triton serves has one contract, whatever family it is of: `images` UINT8
[N, H, W, 3] (RGB, resized to the model's input) in, `candidates` FP32 [N, 300, 6] out, rows of
x1 y1 x2 y2 in input pixels, score and class, sorted by descending score. Normalisation, layout,
box decoding, class map and top-k are part of the graph, so one preprocess and one postprocess
serve every family.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import onnx
from tqdm import tqdm

from contract import DetectorInfo
from families import FAMILIES, DetectorImportError
from families.checking import verify
from families.folding import Folded, ImportOptions, fold
from families.raw import load
from fetch_model import COCO_SSD
from import_tfjs import COCO_SSD_CUT, import_graph
from pixel_arguments import scale, size, three
from tfjs_format import TfjsImportError

__all__ = [
    "DetectorImportError",
    "DetectorInfo",
    "Folded",
    "ImportOptions",
    "fold",
    "import_coco_ssd",
    "import_detector",
    "save",
    "verify",
]


def save(model: onnx.ModelProto, path: Path, check: Callable[[Path], None] | None = None) -> None:
    """Write a model in one step: complete and, if `check` is given, found good by it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        if check is not None:
            check(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def import_detector(raw: Path, out_path: Path, options: ImportOptions | None = None) -> Folded:
    """Make a detector of the pipeline's contract out of an exported ONNX file.

    Args:
        raw: The file; weights that lie beside it are read too.
        out_path: ONNX file to write, once its candidates have been compared with those of `raw`.
        options: What is known of the model.

    Returns:
        The detector and what it was made of.

    Raises:
        DetectorImportError: The file is no detector of a known family, or the result is another.
    """
    with tqdm(total=3, desc="reading", unit="step", disable=None, leave=False) as progress:
        exported = load(raw)
        progress.update()
        progress.set_description("folding")
        folded = fold(exported, options)
        progress.update()
        progress.set_description("comparing")
        save(folded.model, out_path, partial(verify, folded=folded))
        progress.update()
    return folded


def import_coco_ssd(tfjs_dir: Path, out_path: Path) -> Path:
    """Make the default detector: TensorFlow.js SSDLite-MobileNetV2 to a served ONNX model.

    Args:
        tfjs_dir: Folder of the GraphModel, as `fetch_model.fetch_coco_ssd` leaves it.
        out_path: ONNX file to write; the raw detector goes beside it as `raw.onnx`.

    Returns:
        `out_path`.

    Raises:
        TfjsImportError: The GraphModel cannot be imported.
        DetectorImportError: The import does not give a detector that runs.
    """
    raw_path = out_path.with_name("raw.onnx")
    save(import_graph(tfjs_dir, COCO_SSD_CUT), raw_path)
    import_detector(raw_path, out_path, ImportOptions(family="ssd", source=COCO_SSD.spec))
    return out_path


def _classes(text: str) -> tuple[int, ...]:
    chosen: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"{text!r}: give numbers and ranges, such as 0,2,5-7")
        if int(last or first) < int(first):
            raise argparse.ArgumentTypeError(f"{text!r}: {part.strip()} ends before it begins")
        chosen += range(int(first), int(last or first) + 1)
    if not chosen or len(set(chosen)) < len(chosen):
        raise argparse.ArgumentTypeError(f"{text!r} names no class, or one twice")
    return tuple(chosen)


def _labels(text: str) -> tuple[str, ...]:
    try:
        lines = Path(text).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be read: {error}") from error
    labels = tuple(line.strip() for line in lines if line.strip())
    if not labels:
        raise argparse.ArgumentTypeError(f"{text} names no class")
    return labels


def _bounded(low: float, high: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(-1)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    families = "".join(f"  {f.name:16} {f.models}: {f.outputs}\n" for f in FAMILIES.values())
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"families, and the outputs by which they are recognised:\n{families}\n"
        "What is not given is assumed as the family's own package has it, and said at the end.",
    )
    parser.add_argument(
        "raw", type=Path,
        help="ONNX detector as it was exported, opset 11 or newer; or the folder of the default"
        " detector that fetch_model.py filled",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, help="ONNX file to write")
    parser.add_argument(
        "--family", choices=sorted(FAMILIES), metavar="NAME",
        help="one of the families below (default: recognised by the outputs)",
    )  # fmt: skip
    parser.add_argument("--source", default="", help="where the model is from, for the metadata")
    group = parser.add_argument_group("classes")
    group.add_argument(
        "--labels", type=_labels, metavar="FILE",
        help="names of the classes, one a line, of all or of those that --classes keeps (of all if"
        " both are as many; default: those in the file, else COCO's for 80, 90 or 91 classes, else"
        " 'class 0' and so on)",
    )  # fmt: skip
    group.add_argument(
        "--classes", type=_classes, metavar="LIST",
        help="classes to keep, in the order that they are to have: 0,2,5-7 (default: all; of 90 and"
        " 91 classes those 80 that COCO uses)",
    )  # fmt: skip
    group = parser.add_argument_group("input")
    group.add_argument(
        "--input-size", type=size, metavar="WxH", dest="input_size_wh",
        help="width and height in pixels, for models that take any, such as 640 or 640x384",
    )  # fmt: skip
    group.add_argument(
        "--input-order", choices=("rgb", "bgr"), dest="order", help="of the channels"
    )
    group.add_argument(
        "--mean", type=three, metavar="NUMBERS",
        help="subtracted from pixels of 0 to 255: one number, or three in the model's order",
    )  # fmt: skip
    group.add_argument(
        "--std", "--scale", type=scale, metavar="NUMBERS",
        help="what the difference is divided by, in the same units: 255 gives 0 to 1",
    )  # fmt: skip
    group.add_argument(
        "--resize", choices=("letterbox", "stretch"), help="keep the aspect ratio and pad, or fill"
    )
    group.add_argument(
        "--anchor", choices=("center", "top-left"), help="where a letterboxed image lies"
    )
    group.add_argument(
        "--pad-value", type=_bounded(0, 255, int), help="grey of the padding, 0 to 255"
    )
    parser.add_argument(
        "--iou-threshold", type=_bounded(0, 1, float),
        help="overlap of boxes of one class above which the lower score is suppressed, 0 to 1,"
        " unless a request says otherwise; 1 suppresses nothing",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    given = {name: getattr(args, name) for name in ImportOptions.__dataclass_fields__}
    folded = None
    try:
        if args.raw.is_dir():
            if any(value not in (None, "", "ssd") for value in given.values()):
                parser.error(
                    "of the folder of the default detector everything is known: no options"
                )
            import_coco_ssd(args.raw, args.output)
        else:
            folded = import_detector(args.raw, args.output, ImportOptions(**given))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (DetectorImportError, TfjsImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {args.output} ({args.output.stat().st_size / 1e6:.1f} MB)")
    for heading, text in (folded.summary if folded else {}).items():
        print(f"  {heading:9} {text}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
