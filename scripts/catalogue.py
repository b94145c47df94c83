"""The catalogue of public detectors, and the lock file of what was downloaded.

A file is known by its SHA-256: from the catalogue where that names it, else from the lock file,
which records it at the first download. Either way no other file is accepted later, wherever it
comes from.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CATALOGUE", "DEFAULT_LOCK", "CatalogueError", "Entry", "Lock", "read_catalogue"]

CATALOGUE = Path(__file__).with_name("catalogue.toml")
DEFAULT_LOCK = Path(__file__).resolve().parent.parent / "models.lock.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class CatalogueError(ValueError):
    """The catalogue or the lock file is damaged; the message says where."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One detector of the catalogue.

    Attributes:
        name: What it is asked for by; its file is called so.
        title: What its authors call it.
        url: Where the ONNX file is.
        family: Key of `families.FAMILIES`.
        input: Width and height of the input in pixels.
        map: COCO's mAP as published, on val2017 or test-dev, 0 to 1.
        license: SPDX identifier of the model's licence.
        source: The page that publishes the model and its accuracy.
        sha256: The file's, in hexadecimal; empty if only a first download can tell.
        size: The file's in bytes; 0 if not known.
        any_size: Whether the model takes images of any size, so that the import must be told.
    """

    name: str
    title: str
    url: str
    family: str
    input: tuple[int, int]
    map: float
    license: str
    source: str
    sha256: str = ""
    size: int = 0
    any_size: bool = False

    @property
    def file_name(self) -> str:
        """What the file is called here and on a mirror."""
        return f"{self.name}.onnx"


def read_catalogue(path: Path = CATALOGUE) -> dict[str, Entry]:
    """The detectors by name.

    Raises:
        CatalogueError: The file is no catalogue.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CatalogueError(f"{path} cannot be read: {error}") from error
    return {name: _entry(name, values, path) for name, values in content.items()}


def _entry(name: str, values: Any, path: Path) -> Entry:
    try:
        entry = Entry(name=name, **{**values, "input": tuple(values["input"])})
    except (KeyError, TypeError) as error:
        raise CatalogueError(f"{path}: [{name}] is no entry: {error}") from error
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name):
        raise CatalogueError(f"{path}: [{name}] cannot be the name of a file")
    if not entry.url.startswith("https://"):
        raise CatalogueError(f"{path}: [{name}] has the url {entry.url!r}; it must be https://")
    if entry.sha256 and not _SHA256.fullmatch(entry.sha256):
        raise CatalogueError(f"{path}: [{name}] has the sha256 {entry.sha256!r}")
    return entry


@dataclass(frozen=True)
class Lock:
    """The file that remembers what was downloaded first; it may be committed.

    Attributes:
        path: The JSON file; need not exist.
    """

    path: Path = DEFAULT_LOCK

    def sha256_of(self, entry: Entry) -> str:
        """The only SHA-256 that the entry's file may have; empty if it was never seen.

        Raises:
            CatalogueError: The lock file is damaged.
        """
        return entry.sha256 or str(self._read().get(entry.name, {}).get("sha256", ""))

    def record(self, entry: Entry, sha256: str, size: int, origin: str) -> None:
        """Remember an entry's file; what is remembered already stays.

        Args:
            entry: The entry.
            sha256: Of the file.
            size: Of the file, in bytes.
            origin: The URL or the path that it came from.
        """
        content = self._read()
        if entry.name in content:
            return
        content[entry.name] = {"sha256": sha256, "size": size, "origin": origin}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        temporary.replace(self.path)

    def _read(self) -> dict[str, Mapping[str, Any]]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise CatalogueError(f"{self.path} is damaged: {error}; restore it") from error
        if not isinstance(content, dict) or not all(
            isinstance(value, dict) and _SHA256.fullmatch(str(value.get("sha256", "")))
            for value in content.values()
        ):
            raise CatalogueError(f"{self.path} is damaged: it is no list of SHA-256s; restore it")
        return content
