"""The configurations that plans make of an ensemble: as text, as a repository to try, in place."""

from __future__ import annotations

import difflib
import shutil
from pathlib import Path

from assembly.changes import Changes, locked
from detserve.repository import DetectorRepository, RepositoryError
from local_server import RECORD
from tuning.rewrite import rewrite
from tuning.settings import STAGES, Plan, apply_plan, configs_of, settings_of

__all__ = ["Workspace"]

_CONFIG = "config.pbtxt"
# Of no use to Triton, or of other versions and generations.
_LEFT_OUT = ("__pycache__", ".*", "retired-*", RECORD)


class Workspace:
    """An ensemble whose configurations are to be tuned.

    Args:
        root: The model repository. Nothing in it is changed but by `apply`.
        ensemble: Name of the ensemble.

    Attributes:
        repository: The ensemble as it is.
        names: Its models by stage; the ensemble's own is "ensemble".
        settings: What can be set, by name.
        configs: Its configurations by stage.

    Raises:
        RepositoryError: There is no such ensemble, or a part of it is missing.
    """

    def __init__(self, root: Path, ensemble: str = "detection") -> None:
        self._root = root
        self.repository = DetectorRepository(root, ensemble)
        self.repository.model_file()  # raises if there is none
        self.configs = configs_of(self.repository)
        self.names = {stage: config.name for stage, config in self.configs.items()}
        self.settings = settings_of(self.repository.backend)
        self.texts = {name: self._read(name) for name in self.names.values()}

    @property
    def models(self) -> dict[str, str]:
        """The model of each stage."""
        return {stage: self.names[stage] for stage in STAGES}

    def texts_of(self, plan: Plan) -> dict[str, str]:
        """The configurations of a plan as text, by the model's name."""
        configs = apply_plan(self.settings, self.configs, plan)
        return {
            config.name: rewrite(self.texts[config.name], config) for config in configs.values()
        }

    def build(self, plan: Plan, folder: Path) -> None:
        """Make a repository of the ensemble alone: a plan's configurations, links to the rest.

        Args:
            plan: The plan.
            folder: An empty one, or none yet.
        """
        ignored = shutil.ignore_patterns(*_LEFT_OUT, _CONFIG)
        for name, text in self.texts_of(plan).items():
            source = (self._root / name).resolve()
            shutil.copytree(source, folder / name, ignore=ignored, copy_function=_link)
            (folder / name / _CONFIG).write_text(text, encoding="utf-8")
        for version in folder.glob("*/configs"):  # what a replaced version was served with
            shutil.rmtree(version)

    def save(self, plan: Plan, folder: Path) -> None:
        """The same, in place of what is there: complete at every moment but that of the swap."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        new, old = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        self.build(plan, new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    def diff(self, plan: Plan) -> str:
        """What a plan changes, as `diff -u` shows it."""
        lines: list[str] = []
        for name, text in self.texts_of(plan).items():
            lines += difflib.unified_diff(
                self.texts[name].splitlines(keepends=True),
                text.splitlines(keepends=True),
                f"a/{name}/{_CONFIG}",
                f"b/{name}/{_CONFIG}",
            )
        return "".join(lines)

    def apply(self, plan: Plan, backup: Path) -> list[Path]:
        """Write a plan's configurations into the repository itself: all of them, or none.

        Args:
            plan: The plan.
            backup: Folder for what they replace.

        Returns:
            The files that were changed.

        Raises:
            RepositoryError: Somebody has changed a configuration in the meantime.
        """
        with locked(self._root):
            for name, text in self.texts.items():
                if self._read(name) != text:
                    raise RepositoryError(
                        f"{self._root / name / _CONFIG} has been changed since: nothing is applied"
                    )
            with Changes() as changes:
                for name, text in self.texts_of(plan).items():
                    if text != self.texts[name]:
                        changes.write(backup / name / _CONFIG, self.texts[name].encode())
                for name, text in self.texts_of(plan).items():
                    changes.write(self._root / name / _CONFIG, text.encode())
        return [path for path in changes.written if self._root in path.parents]

    def _read(self, name: str) -> str:
        return (self._root / name / _CONFIG).read_text(encoding="utf-8")


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(Path(source).resolve())
