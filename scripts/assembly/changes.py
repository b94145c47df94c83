"""Changing files of a repository so that an interruption leaves it as it was."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from detserve.repository import RepositoryError

__all__ = ["Changes", "locked", "write_atomically"]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is at every moment complete: the old or the new."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others that would change a repository out; wait for one that is at it.

    Raises:
        RepositoryError: There is no such repository.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RepositoryError(f"no model repository {folder}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Changes:
    """Files and folders that are written together, or not at all.

    Used with `with`: an exception in its body takes back what was written, in reverse order.

    Attributes:
        written: The files that are new or have another content, in order.
    """

    def __init__(self) -> None:
        self.written: list[Path] = []
        self._undo: list[Callable[[], object]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            while self._undo:
                self._undo.pop()()

    def folder(self, path: Path) -> None:
        """See that there is a folder, and its parents."""
        if not path.is_dir():
            self.folder(path.parent)
            self._undo.append(lambda: _remove_if_empty(path))
            path.mkdir()

    def write(self, path: Path, content: bytes) -> None:
        """Write a file, unless it has that content."""
        before = path.read_bytes() if path.is_file() else None
        if before == content:
            return
        self.folder(path.parent)
        if before is None:
            self._undo.append(lambda: path.unlink(missing_ok=True))
        else:
            self._undo.append(lambda: write_atomically(path, before))
        write_atomically(path, content)
        self.written.append(path)

    def add_folder(self, source: Path, path: Path) -> None:
        """Move a folder that `temporary` made to where there is none."""
        self._undo.append(lambda: shutil.rmtree(path, ignore_errors=True))
        source.rename(path)

    def temporary(self, path: Path) -> None:
        """Make a folder anew that goes again if the changes are taken back."""
        shutil.rmtree(path, ignore_errors=True)  # a killed run may have left it
        self._undo.append(lambda: shutil.rmtree(path, ignore_errors=True))
        path.mkdir()


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # somebody has put something there
        folder.rmdir()
