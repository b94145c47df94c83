"""The versions of a detector: which there are, going back to the one before, and clearing up."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from assembly.changes import Changes, locked, write_atomically
from assembly.serving import ENGINES
from detserve.repository import DetectorRepository, RepositoryError, read_model_config

__all__ = [
    "clear_up",
    "next_version",
    "prune",
    "remove",
    "roll_back",
    "save_configs",
    "settle",
    "versions_of",
]

# In a version's folder: the configurations it was served with, where those in place are another's.
_SAVED = "configs"
_RETIRED = re.compile(r"retired-([1-9]\d*)")
_NEW = ".new-"  # Triton looks at folders alone that are numbers
_FILES = {name for engine in ENGINES.values() for name in (engine.file, f"{engine.file}.json")}


def versions_of(detector: Path) -> list[int]:
    """The versions of a detector that hold a model, whichever engine's, ascending."""
    return sorted(
        int(folder.name)
        for folder in (detector.iterdir() if detector.is_dir() else ())
        if re.fullmatch(r"[1-9]\d*", folder.name)
        and any((folder / engine.file).is_file() for engine in ENGINES.values())
    )


def next_version(detector: Path) -> int:
    """The first number that no version has or had before it was retired."""
    retired = (_RETIRED.fullmatch(path.name) for path in detector.glob("retired-*"))
    return max([0, *versions_of(detector), *(int(match[1]) for match in retired if match)]) + 1


def staging(detector: Path, version: int) -> Path:
    """The folder in which a version is made, out of Triton's sight."""
    return detector / f"{_NEW}{version}"


def save_configs(current: DetectorRepository, root: Path, changes: Changes) -> None:
    """Keep the configurations of an ensemble with its newest version, before they are replaced."""
    detector = root / current.detector.name
    versions = versions_of(detector)
    if not versions:
        return
    saved = detector / str(versions[-1]) / _SAVED
    for config in current.configs:
        content = (root / config.name / "config.pbtxt").read_bytes()
        changes.write(saved / f"{config.name}.pbtxt", content)
    labels = detector / "labels.txt"
    if labels.is_file():
        changes.write(saved / labels.name, labels.read_bytes())


def settle(root: Path, ensemble: str) -> None:
    """Put the configurations in place that the newest version was served with.

    Only a version that was replaced keeps its own. If it is the newest, the one that replaced it
    is gone, or never came.
    """
    detector = root / DetectorRepository(root, ensemble).detector.name
    versions = versions_of(detector)
    saved = detector / str(versions[-1]) / _SAVED if versions else detector / _SAVED
    if not saved.is_dir():
        return
    for file in sorted(saved.iterdir()):
        model = detector.name if file.suffix == ".txt" else file.stem
        name = file.name if file.suffix == ".txt" else "config.pbtxt"
        if (root / model).is_dir():
            write_atomically(root / model / name, file.read_bytes())
    shutil.rmtree(saved)


def roll_back(root: Path, ensemble: str) -> tuple[int, int]:
    """Go back to the version before the newest one, which is set aside as `retired-N`.

    Triton does not see a folder of that name. The configurations go back too, if they were
    replaced. A running server changes when the model is loaded anew.

    Returns:
        The version set aside and the one that is the newest now.

    Raises:
        RepositoryError: There is no such ensemble, or no version before the newest.
    """
    with locked(root):
        settle(root, ensemble)
        current = DetectorRepository(root, ensemble)
        detector = root / current.detector.name
        versions = versions_of(detector)
        if len(versions) < 2:
            raise RepositoryError(
                f"{detector} has no version before {versions[0] if versions else 'the first'}"
                " to go back to"
            )
        clear_up(detector)
        newest = detector / str(versions[-1])
        newest.rename(detector / f"retired-{versions[-1]}")
        settle(root, ensemble)
        return versions[-1], versions[-2]


def prune(detector: Path, keep: int) -> list[int]:
    """Remove all versions but the newest ones; return the numbers of those that went."""
    old = versions_of(detector)[:-keep]
    for version in old:
        folder = detector / str(version)
        shutil.rmtree(folder / _SAVED, ignore_errors=True)
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
        if not any(folder.iterdir()):  # what else is in it is not ours
            folder.rmdir()
    return old


def clear_up(detector: Path) -> None:
    """Remove what an interrupted run left, and the version that was retired last."""
    for pattern in (f"{_NEW}*", "retired-*"):
        for folder in detector.glob(pattern):
            shutil.rmtree(folder)


def remove(root: Path, ensemble: str) -> list[str]:
    """Remove an ensemble and those of its steps that no other ensemble has.

    Returns:
        The names of the models that went.

    Raises:
        RepositoryError: There is no such ensemble.
    """
    with locked(root):
        names = [config.name for config in DetectorRepository(root, ensemble).configs]
        used = {
            step.model_name
            for path in root.glob("*/config.pbtxt")
            if path.parent.name != ensemble
            for step in read_model_config(path.parent).ensemble_scheduling.step
        }
        # The ensemble first: the steps are whole without it.
        gone = [name for name in reversed(names) if name not in used]
        for name in gone:
            shutil.rmtree(root / name)
        return gone
