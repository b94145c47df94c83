"""The command's arguments -> images to send, and names to save pictures under."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["STDIN", "Source", "expand_arguments", "output_paths"]

STDIN = "-"
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"}
)
JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})


@dataclass(frozen=True, slots=True)
class Source:
    """One image to read, or an argument that led to none.

    Attributes:
        name: The path, ``-`` for standard input, or the argument.
        problem: Why there is nothing to read, if so.
    """

    name: str
    problem: str | None = None


def expand_arguments(arguments: Iterable[str]) -> list[Source]:
    """The images that paths, folders and patterns stand for, in their order.

    A file that is named is taken whatever its suffix; folders are searched to their depth for
    files with an image's suffix, hidden ones left out. Patterns are for shells that do not
    expand them.
    """
    return [source for argument in arguments for source in _expand(argument)]


def _expand(argument: str) -> Iterator[Source]:
    if argument == STDIN:
        yield Source(argument)
    elif argument and Path(argument).is_dir():  # Path("") would be the current folder
        yield from _search(argument) or [Source(argument, "the folder holds no images")]
    elif argument and Path(argument).exists():
        yield Source(argument)
    elif glob.has_magic(argument):
        yield from _match(argument) or [Source(argument, "the pattern matches no image")]
    else:
        yield Source(argument, "there is no such file or folder")


def _match(pattern: str) -> list[Source]:
    """The files that match, and the images of the folders that do, each once."""
    found: dict[str, Source] = {}
    for match in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 - it keeps "./"
        for source in _search(match) if Path(match).is_dir() else [Source(match)]:
            found.setdefault(source.name, source)
    return list(found.values())


def _search(folder: str) -> list[Source]:
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                found.append(Source(str(Path(parent, name))))
    return found


def output_paths(sources: Sequence[Source], folder: Path) -> list[Path]:
    """Where each image's annotated picture is saved: under its own name, no two under one.

    JPEG files stay JPEG; all others become PNG.

    Raises:
        ValueError: A picture would replace one of the images themselves.
    """
    originals = {Path(source.name).resolve() for source in sources if source.problem is None}
    paths: list[Path] = []
    taken: set[str] = set()
    for source in sources:
        name = Path("stdin" if source.name == STDIN else source.name)
        suffix = name.suffix if name.suffix.lower() in (*JPEG_SUFFIXES, ".png") else ".png"
        path = folder / f"{name.stem}{suffix}"
        number = 1
        while path.name.lower() in taken:
            number += 1
            path = folder / f"{name.stem}-{number}{suffix}"
        if source.problem is None and path.resolve() in originals:
            raise ValueError(f"would replace the image {path}; choose another folder")
        taken.add(path.name.lower())
        paths.append(path)
    return paths
