"""Triton's log: which lines concern a user, and what a failed start says."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

_HEADER = re.compile(r"([IWEF])\d{4} [\d:.]+ \d+ \S+\] ?")
# What Triton complains about on every machine without a GPU, and our own signal to it.
_NOISE = re.compile(
    r"pinned.system memory|CudaDriverHelper|unable to create stream|DCGM|NVML|CUDA memory pool"
    r"|^Signal \(15\) received"
)
_TABLE_ROW = re.compile(r"\|(.*?)\|(.*?)\|(.*)\|\s*$")


class Log:
    """Takes Triton's output line by line: keeps the last ones, writes all, shows some.

    A file that cannot be written, as on a full disk, is said once and ends nothing: Triton would
    hang if nobody read its output. Lines are written again as soon as that works.

    Args:
        show: Called with each line for the terminal.
        file: Where every line is written.
        verbose: Show every line, not just warnings, errors and what models print.
    """

    def __init__(
        self, show: Callable[[str], None] | None, file: Path | None, verbose: bool
    ) -> None:
        self._show = show
        # Unbuffered: what a full disk did not take must not be tried again when the file is closed.
        self._file: BinaryIO | None = file.open("ab", buffering=0) if file else None
        self._path = file
        self._problem = ""  # why the file could not be written the last time
        self._torn = False  # whether the file's last line is without its end
        self._verbose = verbose
        self._lines: deque[str] = deque(maxlen=2000)
        self._in_shown = True
        self._held: list[str] | None = None

    def hold(self) -> None:
        """Show no more of Triton's lines until `release`: Triton starts."""
        self._held = []

    def release(self, *, show: bool) -> None:
        """Show lines again.

        Args:
            show: Show those that were held too; a failed start has them in its error.
        """
        held, self._held = self._held or [], None
        if show:
            for line in held:
                self._tell(line)

    def add(self, line: str) -> None:
        """Take one line of Triton's."""
        self._lines.append(line)
        self._write(line)
        shown = self._concerns_user(line)
        if self._verbose or shown:
            held = self._held
            if held is not None and not self._verbose:
                held.append(line)
            else:
                self._tell(line)

    def note(self, line: str) -> None:
        """Take one line of our own: always shown."""
        self._write(line)
        self._tell(line)

    def lines(self) -> list[str]:
        """The last lines of Triton's."""
        return list(self._lines)

    def forget(self) -> None:
        """Drop the kept lines: another Triton starts."""
        self._lines.clear()

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()
            self._file = None

    def _write(self, line: str) -> None:
        """Write a line to the file, if that works."""
        if self._file is None:
            return
        data = f"{chr(10) if self._torn else ''}{line}\n".encode(errors="replace")
        written, problem = 0, ""
        try:
            written = self._file.write(data)
            if written < len(data):
                problem = os.strerror(errno.ENOSPC)
        except OSError as error:
            problem = error.strerror or str(error)
        if written > 0:
            self._torn = written < len(data)
        if problem != self._problem:
            text = f"cannot be written: {problem}; going on without it"
            self._tell(f"The log file {self._path} {text if problem else 'is written again'}.")
        self._problem = problem

    def _tell(self, line: str) -> None:
        """Show a line, if that works: the standard output may be a file on a full disk, too."""
        if self._show:
            with contextlib.suppress(OSError):
                self._show(line)

    def _concerns_user(self, line: str) -> bool:
        header = _HEADER.match(line)
        if header:
            self._in_shown = header[1] != "I" and not _NOISE.search(line)
            return self._in_shown
        if _NOISE.search(line):
            return False
        # Tables follow information lines; anything else without a header is a model's own output
        # or the rest of a traceback.
        return self._in_shown or not (line[:1] in "+|" or not line.strip())


def failure(lines: Iterable[str]) -> str:
    """Say why a Triton that did not start did not, from its log.

    Args:
        lines: The lines of its log.

    Returns:
        The models that are not available, each with its reason, or else the errors of the log.
    """
    lines = list(lines)
    models = unavailable_models(lines)
    if models:
        return "\n".join(
            f"model {name!r} does not load: {_explain(reason)}" for name, reason in models.items()
        )
    errors = [line for line in lines if re.match(r"[EF]\d{4} |error:|\[libprotobuf ERROR", line)]
    errors = [line for line in errors if not _NOISE.search(line)]
    # "failed to load all models" says nothing that the lines before it do not.
    errors = errors[:-1] if len(errors) > 1 and errors[-1].startswith("error:") else errors
    errors = errors or lines[-15:]
    texts = (re.sub(r"^\[libprotobuf ERROR .*?\] ", "", _HEADER.sub("", line)) for line in errors)
    return "\n".join(text.strip('" ') for text in texts) or "it said nothing"


def unavailable_models(lines: Iterable[str]) -> dict[str, str]:
    """Read the table of models that Triton logs once they are loaded.

    Args:
        lines: The lines of the log.

    Returns:
        The models that are not ready, with the reason Triton gives.
    """
    reasons: dict[str, list[str]] = {}
    current: list[str] | None = None
    in_table = False
    for line in lines:
        row = _TABLE_ROW.match(line)
        if row is None:
            in_table = in_table and line.startswith("+")
            continue
        name, version, status = (cell.strip() for cell in row.groups())
        if (name, version, status) == ("Model", "Version", "Status"):
            in_table, reasons, current = True, {}, None
        elif in_table and name:
            current = None
            if status.startswith("UNAVAILABLE"):
                current = reasons.setdefault(name, [])
                current.append(status.removeprefix("UNAVAILABLE").lstrip(": "))
        elif in_table and current is not None:
            current.append(row[3].rstrip().removeprefix(" "))
    return {name: "\n".join(parts).strip() for name, parts in reasons.items()}


def _explain(reason: str) -> str:
    for path in re.findall(r"[^\s'\"]+/model\.(?:onnx|plan)\b", reason):
        if not Path(path).exists():
            return f"{reason.splitlines()[0]} (run `make model` to get it)"
    return reason
