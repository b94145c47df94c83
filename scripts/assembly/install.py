"""Putting a detector into a model repository: a new version, or a new ensemble around it."""

from __future__ import annotations

import math
import shutil
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from assembly.changes import Changes, locked
from assembly.configs import WARMUP_IMAGE, derive_configs, reconfigure
from assembly.detector import DetectorFile, read_detector_file
from assembly.fit import completed, misfits
from assembly.serving import (
    DEFAULT_ENSEMBLE,
    ENGINES,
    ModelNames,
    Serving,
    adjust,
    model_names,
)
from assembly.versions import (
    clear_up,
    next_version,
    prune,
    save_configs,
    settle,
    staging,
    versions_of,
)
from detserve.repository import DetectorRepository, RepositoryError

__all__ = ["Installed", "install"]

# What every ensemble has the same: the code of its postprocessing, and an image to warm up with.
TEMPLATE = Path(__file__).resolve().parents[2] / "model_repository"


@dataclass(frozen=True)
class Installed:
    """What `install` did.

    Attributes:
        ensemble: Name of the ensemble.
        detector: Name of its detector.
        engine: What runs it.
        version: The version that the model has become.
        path: The model's file in the repository.
        changed: The other files that are new or have another content.
        pruned: Versions that were removed.
        served: The version that the ensemble's requests reach; None if its configurations name one
            that is not there.
    """

    ensemble: str
    detector: str
    engine: str
    version: int
    path: Path
    changed: tuple[Path, ...]
    pruned: tuple[int, ...]
    served: int | None


def install(
    model: Path,
    repository: Path,
    *,
    ensemble: str = DEFAULT_ENSEMBLE,
    engine: str | None = None,
    version: int | None = None,
    serving: Serving | None = None,
    source: Path | None = None,
    replace_configs: bool = False,
    overwrite: bool = False,
    keep: int | None = None,
    check: Callable[[Path, str], None] | None = None,
) -> Installed:
    """Put a detector into a repository as a version of an ensemble, which is made if need be.

    An ensemble that is there keeps its configurations, but for what `serving` asks for; the model
    has to fit them. An interruption leaves the repository as it was. Should the process be killed
    while `replace_configs` is at work, the next call here puts the configurations back.

    Args:
        model: ONNX file, or TensorRT plan; it is copied.
        repository: The model repository; a folder that is empty or missing becomes one.
        ensemble: Name of the ensemble.
        engine: Key of `ENGINES`; by default the ensemble's own, and `onnxruntime` for a new one.
        version: Number of the version; by default the next.
        serving: How to serve it.
        source: The ONNX file that a plan without a record was built from.
        replace_configs: Configure the ensemble anew where the model does not fit it.
        overwrite: Write over a version that is there.
        keep: How many versions to keep, the new one included; all by default. The one that is
            served stays in any case.
        check: Called with a repository that has nothing but the new state of the ensemble, and
            with the ensemble's name, before anything is changed; it raises to refuse.

    Raises:
        RepositoryError: The model is no detector, it does not fit the ensemble, or a setting
            is not possible.
        OSError: A file cannot be read or written.
    """
    if keep is not None and keep < 1:
        raise RepositoryError(f"at least one version must be kept, got {keep}")
    with Changes() as outermost:  # it takes back an empty folder alone: that needs no lock
        outermost.folder(repository)
        with locked(repository):
            with Changes() as changes:
                current = None
                if (repository / ensemble / "config.pbtxt").is_file():
                    settle(repository, ensemble)
                    current = DetectorRepository(repository, ensemble)
                if engine is None:
                    engine = current.backend if current is not None else "onnxruntime"
                file = read_detector_file(model, engine, source)
                assembly = _prepare(file, current, ensemble, serving or Serving(), replace_configs)
                detector = repository / assembly.names.detector
                version = _choose_version(detector, version, overwrite=overwrite)
                if check is not None:
                    _try_out(repository, assembly, version, check)
                path = _assemble(repository, assembly, version, changes)
            clear_up(detector)
            served = DetectorRepository(repository, ensemble).served_version()
            pruned = prune(detector, keep, served) if keep is not None else []
    return Installed(
        ensemble=ensemble,
        detector=detector.name,
        engine=engine,
        version=version,
        path=path,
        changed=tuple(changes.written),
        pruned=tuple(pruned),
        served=served,
    )


@dataclass(frozen=True)
class _Assembly:
    """The new state of an ensemble.

    Attributes:
        file: The detector.
        names: The ensemble's models.
        configs: Their configurations.
        labels: For `labels.txt`; none leave it as it is.
        replaced: The ensemble as it was, if it is configured anew.
    """

    file: DetectorFile
    names: ModelNames
    configs: dict[str, ModelConfig]
    labels: tuple[str, ...]
    replaced: DetectorRepository | None


def _prepare(
    file: DetectorFile,
    current: DetectorRepository | None,
    ensemble: str,
    serving: Serving,
    replace_configs: bool,
) -> _Assembly:
    limit = file.max_batch
    if limit is not None and (serving.max_batch or 0) > limit:
        raise RepositoryError(
            f"the plan's profile ends at batches of {limit}: --max-batch {serving.max_batch} is"
            " too much for it"
        )
    names = model_names(ensemble) if current is None else ModelNames.of(current)
    if current is None:
        info = file.info
        configs = derive_configs(names, info, file.engine, _within(serving, file.max_batch))
        return _Assembly(file, names, configs, info.labels, None)
    found = misfits(file, current, serving)
    if not found:
        configs = {config.name: deepcopy(config) for config in current.configs}
        adjust(configs, names, file.engine, serving)
        return _Assembly(file, names, configs, (), None)
    if not replace_configs:
        raise RepositoryError(
            f"{file.path} does not fit the ensemble {ensemble!r}:\n  "
            + "\n  ".join(f"{name}: {text}" for name, text in found.items())
            + "\nTo have it side by side give it an ensemble of its own (--ensemble NAME); to"
            " configure this ensemble for it, --replace"
        )
    info = completed(file, current, found)
    batch = min(
        current.ensemble.max_batch_size or ENGINES[file.engine].max_batch,
        file.max_batch or sys.maxsize,
    )
    configs = reconfigure(
        current, info, file.engine, _within(serving, batch), tuned=_is_tuned(current)
    )
    return _Assembly(file, names, configs, info.labels, current)


def _is_tuned(current: DetectorRepository) -> bool:
    """Whether the ensemble suppresses other overlaps than its detector's file says."""
    try:
        own = read_detector_file(current.model_file(), current.backend).info.iou_threshold
    except RepositoryError:  # no file here, or a plan that tells nothing of itself
        return True
    return not math.isclose(own, current.selection_settings().iou_threshold)


def _within(serving: Serving, max_batch: int | None) -> Serving:
    """The same, with a greatest batch if it has none."""
    return serving if serving.max_batch is not None else replace(serving, max_batch=max_batch)


def _choose_version(detector: Path, version: int | None, *, overwrite: bool) -> int:
    if version is None:
        return next_version(detector)
    versions = versions_of(detector)
    if version < 1:
        raise RepositoryError(f"a version is a number from 1, got {version}")
    if versions and version <= versions[-1] and not overwrite:
        raise RepositoryError(
            f"version {version} of {detector.name} would not be served: there is version"
            f" {versions[-1]}, and Triton serves the newest. Leave the number out for"
            f" {next_version(detector)}"
        )
    return version


def _try_out(
    repository: Path, assembly: _Assembly, version: int, check: Callable[[Path, str], None]
) -> None:
    """Hand the new state of an ensemble, in a repository of its own, to a check."""
    names = assembly.names
    with tempfile.TemporaryDirectory(prefix="detserve-check-") as folder:
        scratch = Path(folder)
        for name in names:
            if (repository / name).is_dir():
                ignored = ["__pycache__", ".new-*", "retired-*"]
                if name == names.detector:
                    ignored.append("[1-9]*")
                ignore = shutil.ignore_patterns(*ignored)
                shutil.copytree(repository / name, scratch / name, ignore=ignore)
        with Changes() as changes:
            _assemble(scratch, assembly, version, changes)
        check(scratch, names.ensemble)


def _assemble(root: Path, assembly: _Assembly, version: int, changes: Changes) -> Path:
    """Write an ensemble's files and, last of all, its detector's new version."""
    names = assembly.names
    if assembly.replaced is not None:
        save_configs(assembly.replaced, root, changes)
    for name in (names.ensemble, names.preprocess):
        changes.folder(root / name / "1")
    changes.write(
        root / names.preprocess / "warmup" / WARMUP_IMAGE,
        (TEMPLATE / "preprocess/warmup" / WARMUP_IMAGE).read_bytes(),
    )
    changes.write(
        root / names.postprocess / "1/model.py",
        (TEMPLATE / "postprocess/1/model.py").read_bytes(),
    )
    if assembly.labels:
        lines = "".join(f"{label}\n" for label in assembly.labels)
        changes.write(root / names.detector / "labels.txt", lines.encode())
    for name, config in assembly.configs.items():
        _write_config(root / name / "config.pbtxt", config, changes)
    return _add_version(root / names.detector, assembly.file, version, changes)


def _write_config(path: Path, config: ModelConfig, changes: Changes) -> None:
    """Write a configuration, unless the file says the same: it may have comments."""
    text = text_format.MessageToString(config, as_utf8=True, use_short_repeated_primitives=True)
    if text_format.Parse(text, ModelConfig()) != config:
        raise RepositoryError(f"the configuration of {config.name} cannot be written as text")
    if path.is_file():
        try:
            if text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig()) == config:
                return
        except text_format.ParseError:
            pass  # it is replaced
    changes.write(path, f"# Written by scripts/build_repository.py.\n{text}".encode())


def _add_version(detector: Path, file: DetectorFile, version: int, changes: Changes) -> Path:
    name = ENGINES[file.engine].file
    new, folder = staging(detector, version), detector / str(version)
    changes.folder(detector)
    changes.temporary(new)
    shutil.copyfile(file.path, new / name)
    if file.record is not None:
        shutil.copyfile(file.record, new / f"{name}.json")
    if folder.is_dir():
        for part in sorted(new.iterdir(), reverse=True):  # the record before the model
            part.replace(folder / part.name)
        new.rmdir()
    else:
        changes.add_folder(new, folder)
    return folder / name
