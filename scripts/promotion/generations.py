"""The generations of an ensemble on disk: what is served, what was before, what may be next.

A generation is the ensemble's configuration with the models that it names. Its number is also the
version of the ensemble in Triton, since the response cache knows answers by model and version.

`config.pbtxt` is what a server that starts serves. It is replaced in one step, when a generation
has proven itself. The record beside it, `generations.json`, lists the models of all generations
before they are put in place, so that a launcher leaves alone what is not, or no longer, served.
Models that a promotion has made go when neither the current generation nor the one before it
needs them; those that were there before always stay.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from assembly.changes import locked, write_atomically
from detserve.repository import read_model_config
from local_server import CANDIDATE_OF, RECORD
from promotion.errors import PromotionError

__all__ = ["Generations"]

_NUMBER = "generation"  # parameter of the ensemble
_STAGING = "staging-"


class Generations:
    """The generations of one ensemble.

    Args:
        repository: The model repository.
        ensemble: Name of the ensemble.

    Attributes:
        current: Number of the one that the repository serves.
        candidate: Name of the ensemble under which the next one is tried.

    Raises:
        RepositoryError: There is no such ensemble, or a configuration is wrong.
        PromotionError: The record is damaged.
    """

    def __init__(self, repository: Path, ensemble: str) -> None:
        self.repository = repository
        self.ensemble = ensemble
        self.candidate = f"{ensemble}_candidate"
        self._folder = repository / ensemble
        self._record_path = self._folder / RECORD
        read_model_config(self._folder)
        self._last, self._made, self._entries = self._read_record()
        self.current = self._current()

    @classmethod
    @contextlib.contextmanager
    def exclusive(cls, repository: Path, ensemble: str) -> Iterator[Self]:
        """The generations of an ensemble, read while other promotions of it are kept out.

        Raises:
            RepositoryError: There is no such ensemble, or a configuration is wrong.
            PromotionError: Another promotion is under way, the record is damaged, or somebody
                else's model has the candidate's name.
        """
        read_model_config(repository / ensemble)
        descriptor = os.open(repository / ensemble, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PromotionError(
                    f"another promotion of {ensemble} is under way: wait for its end"
                ) from error
            generations = cls(repository, ensemble)
            if not generations._is_ours():
                raise generations._in_the_way(generations.candidate)
            yield generations
        finally:
            os.close(descriptor)

    @property
    def previous(self) -> int | None:
        """The generation that the current one took the place of, if there is a way back."""
        previous: int | None = self._entries[str(self.current)]["previous"]
        if previous is None or str(previous) not in self._entries:
            return None
        there = all((self.repository / model).is_dir() for model in self.models(previous))
        return previous if there else None

    @property
    def said(self) -> int | None:
        """The number that `config.pbtxt` says; None before the first promotion."""
        number = self._read_config().parameters[_NUMBER].string_value
        return int(number) if number.isdecimal() else None

    def knows(self, number: int) -> bool:
        """Whether a generation is in the record, or the current one."""
        return str(number) in self._entries

    def all_models(self) -> frozenset[str]:
        """The steps of the ensemble in any generation."""
        return frozenset(model for number in self._entries for model in self.models(int(number)))

    def config(self, number: int) -> ModelConfig:
        """The ensemble's configuration in a generation."""
        return text_format.Parse(self._entries[str(number)]["config"], ModelConfig())

    def models(self, number: int) -> list[str]:
        """The steps of the ensemble in a generation, in their order."""
        return [step.model_name for step in self.config(number).ensemble_scheduling.step]

    def about(self, number: int) -> dict[str, Any]:
        """What is noted of a generation."""
        about: dict[str, Any] = self._entries[str(number)].get("about", {})
        return about

    def base_name(self, model: str) -> str:
        """What a model was called before promotions gave it a number."""
        return self._made.get(model, model)

    def next_number(self, served: int) -> int:
        """A number that no generation has had, and no answer in a response cache.

        Args:
            served: The highest version of the ensemble that the server has had.
        """
        known = map(int, self._entries)
        return max([self._last, served, *known, *self._version_folders()]) + 1

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A folder on the repository's file system, but out of Triton's sight."""
        with tempfile.TemporaryDirectory(prefix=_STAGING, dir=self._folder) as folder:
            yield Path(folder)

    def stage(
        self, number: int, config: ModelConfig, made: dict[str, str], source: Path, about: object
    ) -> None:
        """Put a generation's models into the repository, where nothing uses them yet.

        Args:
            number: The generation's number.
            config: The ensemble's configuration, its steps the generation's models.
            made: The models that are new, with what each was called before it had a number.
            source: The folder that holds theirs, from `staging`.
            about: What to note of the generation, for JSON.

        Raises:
            PromotionError: There are such models already.
        """
        with locked(self.repository):
            for name in (*made, self.candidate):
                if (self.repository / name).exists():
                    raise self._in_the_way(name)
            config.name = self.ensemble
            _set_number(config, number)
            self._made |= made
            self._entries[str(number)] = {
                "previous": self.current,
                "config": text_format.MessageToString(config),
                "about": about,
            }
            self._write_record()  # first: it keeps launchers off what comes now
            for name in made:
                (source / name).rename(self.repository / name)

    def show_candidate(self, number: int) -> None:
        """Write the ensemble under which a generation can be tried, by those who know its name."""
        config = self.config(number)
        config.name = self.candidate
        config.ClearField("version_policy")
        config.ClearField("response_cache")
        config.parameters[CANDIDATE_OF].string_value = self.ensemble
        self.hide_candidate()
        with self.staging() as folder:
            (folder / self.candidate / "1").mkdir(parents=True)
            text = text_format.MessageToString(config)
            (folder / self.candidate / "config.pbtxt").write_text(text, encoding="utf-8")
            # In one step, as when it goes: without its mark it would be somebody else's.
            (folder / self.candidate).rename(self.repository / self.candidate)

    def hide_candidate(self) -> None:
        """Remove that ensemble, if it is ours."""
        if (self.repository / self.candidate).exists() and self._is_ours():
            with self.staging() as folder:
                (self.repository / self.candidate).rename(folder / self.candidate)

    def make_version(self, number: int) -> None:
        """Make the folder that the ensemble's version needs to be loaded."""
        (self._folder / str(number)).mkdir(exist_ok=True)
        self._last = max(self._last, number)

    def commit(self, number: int) -> None:
        """Make a generation the current one."""
        with locked(self.repository):
            self._entries[str(number)]["since"] = datetime.now(UTC).isoformat(timespec="seconds")
            self._write_record()
            content = self._entries[str(number)]["config"].encode()
            try:
                write_atomically(self._folder / "config.pbtxt", content)
            finally:  # what is on disk counts, wherever this was interrupted
                self.current = self._current()

    def clear_up(self) -> None:
        """Remove what neither the current generation nor the one before it needs."""
        with locked(self.repository):
            for folder in self._folder.glob(f"{_STAGING}*"):
                shutil.rmtree(folder)
            if not self._record_path.exists() and len(self._entries) == 1:
                return
            self.hide_candidate()
            kept = {self.current, self._entries[str(self.current)]["previous"]}
            needed = {m for n in kept if str(n) in self._entries for m in self.models(n)}
            for model in self._made.keys() - needed:
                shutil.rmtree(self.repository / model, ignore_errors=True)
                del self._made[model]
            for number in [number for number in self._entries if int(number) not in kept]:
                del self._entries[number]
                with contextlib.suppress(OSError):  # what else is in it is not ours
                    (self._folder / number).rmdir()
            if len(self._entries) == 1 and self._last <= self.current:
                self._record_path.unlink(missing_ok=True)  # as if nothing had been
            else:
                self._write_record()

    def _current(self) -> int:
        """Which generation `config.pbtxt` is: the one that it says, whoever else has edited it."""
        number = self.said
        if number is None:
            for known, entry in self._entries.items():
                # The configuration of before the first promotion does not say its number.
                if entry["config"] == self._numbered(int(known)):
                    return int(known)
            number = max([1, *self._version_folders()])
            if self._entries.get(str(number), {}).get("previous") is not None:
                number = self.next_number(served=1)  # that one is a promotion's
        entry = self._entries.get(str(number), {"previous": None})
        self._entries[str(number)] = {**entry, "config": self._numbered(number)}
        return number

    def _is_ours(self) -> bool:
        """Whether the candidate's name is free, or has what a promotion has left there."""
        folder = self.repository / self.candidate
        if not (folder / "config.pbtxt").exists():
            return not folder.exists()
        return CANDIDATE_OF in read_model_config(folder).parameters

    def _in_the_way(self, name: str) -> PromotionError:
        return PromotionError(f"{self.repository / name} is in the way: remove it")

    def _read_config(self) -> ModelConfig:
        text = (self._folder / "config.pbtxt").read_text(encoding="utf-8")
        return text_format.Parse(text, ModelConfig())

    def _version_folders(self) -> list[int]:
        return [int(path.name) for path in self._folder.iterdir() if path.name.isdecimal()]

    def _numbered(self, number: int) -> str:
        """The text of a configuration that says which generation it is.

        Where it says nothing of it, that is added to the text as it is, with its comments.
        """
        text = (self._folder / "config.pbtxt").read_text(encoding="utf-8")
        config = text_format.Parse(text, ModelConfig())
        if not config.HasField("version_policy"):
            text = text.rstrip() + f"\nversion_policy {{ specific {{ versions: [ {number} ] }} }}\n"
        elif list(config.version_policy.specific.versions) != [number]:
            _set_number(config, number)
            return str(text_format.MessageToString(config))
        if _NUMBER not in config.parameters:
            value = f'{{ string_value: "{number}" }}'
            text = text.rstrip() + f'\nparameters {{ key: "{_NUMBER}" value: {value} }}\n'
        return text

    def _read_record(self) -> tuple[int, dict[str, str], dict[str, dict[str, Any]]]:
        try:
            record = json.loads(self._record_path.read_text(encoding="utf-8"))
            entries: dict[str, dict[str, Any]] = record["generations"]
            for entry in entries.values():
                text_format.Parse(entry["config"], ModelConfig())
                int(entry["previous"] or 0)
            return int(record["last"]), dict(record["made"]), entries
        except FileNotFoundError:
            return 0, {}, {}
        except (ValueError, KeyError, TypeError, AttributeError, text_format.ParseError) as error:
            raise PromotionError(f"{self._record_path} is damaged: {error!r}") from error

    def _write_record(self) -> None:
        models = self.all_models()
        record = {
            "about": "the generations of this ensemble; written by scripts/promote.py",
            "models": sorted(models | {self.candidate}),
            "made": self._made,
            "last": self._last,
            "generations": self._entries,
        }
        write_atomically(self._record_path, (json.dumps(record, indent=2) + "\n").encode())


def _set_number(config: ModelConfig, number: int) -> None:
    config.version_policy.specific.versions[:] = [number]
    config.parameters[_NUMBER].string_value = str(number)
