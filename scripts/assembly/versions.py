"""The versions of a detector: which there are, going back to the one before, and clearing up."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from assembly.changes import Changes, locked, write_atomically
from assembly.serving import ENGINES, is_model_name
from detserve.repository import DetectorRepository, RepositoryError, read_model_config
from local_server import RECORD

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
        RepositoryError: There is no such ensemble, no version before the newest, or that one is
            of before a promotion.
    """
    with locked(root):
        settle(root, ensemble)
        current = DetectorRepository(root, ensemble)
        detector = root / current.detector.name
        versions = versions_of(detector)
        promoted = (root / ensemble / RECORD).is_file()
        if promoted and (len(versions) < 2 or _is_of_another_generation(current, detector)):
            raise RepositoryError(
                f"{ensemble} has been promoted, and {detector} has no version before"
                f" {versions[-1] if versions else 'the first'} that belongs to what is served now:"
                " scripts/promote.py --rollback goes back to what a promotion has replaced"
            )
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


def _is_of_another_generation(current: DetectorRepository, detector: Path) -> bool:
    """Whether the version before the newest keeps an ensemble's configuration of another number.

    The response cache knows answers by that number: put in place, it could bring back old ones.
    """
    saved = detector / str(versions_of(detector)[-2]) / _SAVED / f"{current.ensemble.name}.pbtxt"
    if not saved.is_file():
        return False
    config = text_format.Parse(saved.read_text(encoding="utf-8"), ModelConfig())
    return bool(config.version_policy != current.ensemble.version_policy)


def prune(detector: Path, keep: int, served: int | None) -> list[int]:
    """Remove all versions but the newest ones and the one that is served.

    Returns:
        The numbers of those that went.
    """
    old = [version for version in versions_of(detector)[:-keep] if version != served]
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
    """Remove an ensemble and those of its models that no other ensemble has.

    They are its steps and, after promotions, those of its other generations.

    Returns:
        The names of the models that went.

    Raises:
        RepositoryError: There is no such ensemble, or a record of promotions is damaged.
    """
    with locked(root):
        steps = [config.name for config in DetectorRepository(root, ensemble).configs]
        own = {*steps, *_recorded(root / ensemble)}
        used: set[str] = set()
        candidates = []
        for folder in sorted(path.parent for path in root.glob("*/config.pbtxt")):
            names = {step.model_name for step in read_model_config(folder).ensemble_scheduling.step}
            if not names or folder.name == ensemble:
                continue
            if folder.name in own and names <= own:  # what a promotion tries itself out with
                candidates.append(folder.name)
            else:
                used |= {folder.name, *names, *_recorded(folder)}
        # The ensembles first: the steps are whole without them.
        order = dict.fromkeys([ensemble, *candidates, *reversed(steps), *sorted(own)])
        gone = [name for name in order if name not in used and (root / name).is_dir()]
        for name in gone:
            shutil.rmtree(root / name)
        return gone


def _recorded(ensemble: Path) -> set[str]:
    """The models that the generations of an ensemble have, as promotions have noted them."""
    record = ensemble / RECORD
    try:
        names = set(json.loads(record.read_text(encoding="utf-8"))["models"])
    except FileNotFoundError:
        return set()
    except (ValueError, KeyError, TypeError) as error:
        raise RepositoryError(f"{record} is damaged: {error!r}") from error
    for name in names:
        if not isinstance(name, str) or not is_model_name(name):
            raise RepositoryError(f"{record} is damaged: {name!r} is no model's name")
    return names
