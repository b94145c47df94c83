"""A log of everything that was measured, from which a run goes on and its report is made."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

__all__ = ["Journal", "JournalError", "read_log"]


class JournalError(RuntimeError):
    """A log is damaged, or is not that of this run."""


def read_log(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read a log.

    Returns:
        Its records, and how many bytes they are: behind them may be a line that is cut short.

    Raises:
        JournalError: There is none, or it is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise JournalError(f"there is no log {path}: nothing has been measured yet") from None
    whole = content.rfind(b"\n") + 1
    records = []
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise JournalError(f"line {number} of {path} is damaged") from error
        if not isinstance(record, dict) or not {"kind", "key", "value"} <= set(record):
            raise JournalError(f"line {number} of {path} is no record of a tuning")
        records.append(record)
    return records, whole


class Journal:
    """Records in the order in which they came to be.

    A run asks for each of its records in turn. Those that the log has it gets from there, so that
    it comes to where it was broken off: its decisions depend on records alone.

    Args:
        path: The log, a JSON object a line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: list[dict[str, Any]] = []
        self._position = 0
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a", encoding="utf-8")
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise JournalError(f"another run is writing {self._path}") from None
            self._known, whole = read_log(self._path)
            file.truncate(whole)
        except BaseException:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def replaying(self) -> bool:
        """Whether the next record comes from the log."""
        return self._position < len(self._known)

    def record(
        self, kind: str, key: Mapping[str, Any], produce: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """The next record's value: from the log, or produced now and added to it.

        Args:
            kind: What it is.
            key: What tells it from others of its kind.
            produce: Makes its value.

        Raises:
            JournalError: The log has another record here.
        """
        asked = json.loads(json.dumps({"kind": kind, "key": dict(key)}))
        if self.replaying:
            known = self._known[self._position]
            if {name: known[name] for name in asked} != asked:
                raise JournalError(
                    f"{self._path} is the log of another run: its record {self._position + 1} is"
                    f" {known['kind']} {known['key']}, not {kind} {asked['key']}. Pass --fresh to"
                    " start over, or another --output"
                )
            self._position += 1
            return dict(known["value"])
        value: dict[str, Any] = json.loads(json.dumps(dict(produce())))
        if self._file is None:
            raise JournalError(f"{self._path} is not open")
        self._file.write(json.dumps({**asked, "value": value}) + "\n")
        self._file.flush()
        self._known.append({**asked, "value": value})
        self._position += 1
        return value
