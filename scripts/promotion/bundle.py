"""Building a generation: the builder's work on a copy, under names that nothing has yet."""

from __future__ import annotations

import filecmp
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from assembly import Serving, install
from assembly.detector import read_detector_file
from detserve.repository import DetectorRepository, RepositoryError, read_model_config
from promotion.generations import Generations

__all__ = ["Bundle", "build"]


@dataclass(frozen=True)
class Bundle:
    """A generation that is built, and in no repository yet.

    Attributes:
        config: The ensemble's configuration.
        made: The models that are new, with what each was called before it had a number.
        shared: The models that it has in common with the current generation.
    """

    config: ModelConfig
    made: dict[str, str]
    shared: tuple[str, ...]


def build(
    generations: Generations,
    model: Path,
    number: int,
    folder: Path,
    *,
    engine: str | None = None,
    serving: Serving | None = None,
) -> Bundle:
    """Build a generation around a detector.

    What the detector needs no other than it is now (as a rule preprocessing and postprocessing) is
    shared with the current generation; the rest gets the generation's number in its name.

    Args:
        generations: Those of the ensemble.
        model: The detector's file.
        number: The generation's number.
        folder: Where the new models go; empty, and on the repository's file system.
        engine: Key of `assembly.ENGINES`; None for the current generation's.
        serving: How to serve it; what is None stays as it is.

    Raises:
        RepositoryError: The model is no detector, or cannot be served so.
    """
    scratch = folder / "repository"
    current = DetectorRepository(generations.repository, generations.ensemble)
    for config in current.configs:
        shutil.copytree(
            generations.repository / config.name,
            scratch / config.name,
            # Neither versions of the detector, nor what is not the model's own.
            ignore=_others(generations, is_detector=config.name == current.detector.name),
        )
    install(
        model,
        scratch,
        ensemble=generations.ensemble,
        engine=engine,
        version=1,
        serving=serving,
        replace_configs=True,
    )
    _follow_threshold(current, model, scratch, generations.ensemble)
    built = DetectorRepository(scratch, generations.ensemble)
    made, shared = {}, []
    for step in built.ensemble.ensemble_scheduling.step:
        name: str = step.model_name
        if name != built.detector.name and _same(scratch / name, generations.repository / name):
            shared.append(name)
            continue
        base = generations.base_name(name)
        step.model_name = f"{base}_v{number}"
        step.model_version = -1
        made[step.model_name] = base
        _rename(scratch / name, folder / step.model_name)
    return Bundle(built.ensemble, made, tuple(shared))


def _follow_threshold(
    current: DetectorRepository, model: Path, scratch: Path, ensemble: str
) -> None:
    """Suppress overlaps as the new detector's file says, unless somebody has tuned that."""
    built = DetectorRepository(scratch, ensemble)
    new = read_detector_file(model, built.backend)
    try:
        own = read_detector_file(current.model_file(), current.backend).info.iou_threshold
    except RepositoryError:
        return  # of a plan, say, that tells nothing of itself
    served = built.selection_settings().iou_threshold
    tuned = not math.isclose(current.selection_settings().iou_threshold, own)
    if tuned or "iou_threshold" not in new.said or math.isclose(served, new.info.iou_threshold):
        return
    config = built.postprocess
    config.parameters["iou_threshold"].string_value = str(new.info.iou_threshold)
    text = text_format.MessageToString(config)
    (scratch / config.name / "config.pbtxt").write_text(text, encoding="utf-8")


def _others(
    generations: Generations, *, is_detector: bool
) -> Callable[[str, list[str]], Iterable[str]]:
    def ignored(folder: str, names: list[str]) -> list[str]:
        own = Path(folder).parent == generations.repository
        return [
            name
            for name in names
            if name == "__pycache__"
            or (own and is_detector and (Path(folder) / name).is_dir())
            or name.startswith((".", "staging-"))
        ]

    return ignored


def _rename(source: Path, target: Path) -> None:
    config = read_model_config(source)
    config.name = target.name
    (source / "config.pbtxt").write_text(text_format.MessageToString(config), encoding="utf-8")
    source.rename(target)


def _same(ours: Path, theirs: Path) -> bool:
    """Whether two models have the same configuration, whatever its form, and the same files."""
    if read_model_config(ours) != read_model_config(theirs):
        return False
    files = _files(ours)
    if files.keys() != _files(theirs).keys():
        return False
    return all(filecmp.cmp(path, theirs / name, shallow=False) for name, path in files.items())


def _files(folder: Path) -> Mapping[str, Path]:
    return {
        str(path.relative_to(folder)): path
        for path in folder.rglob("*")
        if path.is_file()
        and path.name not in ("config.pbtxt", ".gitkeep")
        and "__pycache__" not in path.parts
    }
