"""What a model repository holds."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from assembly.detector import read_detector_file
from assembly.serving import ENGINES
from assembly.versions import versions_of
from detserve.repository import DetectorRepository, RepositoryError, read_model_config

__all__ = ["ListedVersion", "list_ensembles"]


@dataclass(frozen=True)
class ListedVersion:
    """A version of an ensemble's detector.

    Attributes:
        ensemble: Name of the ensemble.
        version: The version; None if the detector has none.
        served: Whether it is the one that requests reach.
        engine: What runs it.
        megabytes: Size of its file.
        written: When the file was written.
        about: What the file says of itself, or what is wrong with it.
    """

    ensemble: str
    version: int | None
    served: bool
    engine: str
    megabytes: float = 0.0
    written: datetime.datetime | None = None
    about: str = ""


def list_ensembles(repository: Path) -> Iterator[ListedVersion]:
    """The versions of every detection ensemble, by the ensemble's name and ascending.

    Raises:
        RepositoryError: There is no repository, or a configuration cannot be read.
    """
    if not repository.is_dir():
        raise RepositoryError(f"no model repository {repository}: No such file or directory")
    for path in sorted(repository.glob("*/config.pbtxt")):
        if len(read_model_config(path.parent).ensemble_scheduling.step) != 3:
            continue
        ensemble = path.parent.name
        current = DetectorRepository(repository, ensemble)
        detector = repository / current.detector.name
        versions = versions_of(detector)
        if not versions:
            yield ListedVersion(ensemble, None, False, current.backend, about="no version yet")
        for version in versions:
            served = version == current.served_version()
            yield _listed(detector / str(version), ensemble, current.backend, served)


def _listed(folder: Path, ensemble: str, backend: str, served: bool) -> ListedVersion:
    # A version that was replaced may be another engine's.
    files = [folder / ENGINES[backend].file] if backend in ENGINES else []
    files += [folder / engine.file for engine in ENGINES.values()]
    file = next(path for path in files if path.is_file())
    engine = "tensorrt" if file.suffix == ".plan" else backend
    try:
        info = read_detector_file(file, engine).info
        width, height = info.input_size_wh
        about = f"{info.family or 'unknown family'} {info.variant} {width}x{height}"
        about += f", {len(info.labels) or 'no'} labels"
        about += f", {info.source}" if info.source else ""
    except RepositoryError as error:
        about = str(error)
    status = file.stat()
    return ListedVersion(
        ensemble=ensemble,
        version=int(folder.name),
        served=served,
        engine=engine,
        megabytes=status.st_size / 1e6,
        written=datetime.datetime.fromtimestamp(status.st_mtime, datetime.UTC),
        about=about,
    )
