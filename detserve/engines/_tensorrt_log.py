"""What TensorRT says while it works, kept for the error that follows."""

from __future__ import annotations

import functools
from typing import Any

__all__ = ["shared_log"]


@functools.cache
def shared_log(trt: Any) -> Any:
    """The logger for every builder, runtime and engine of a process.

    There is one, since TensorRT takes the first that it is given and ignores the others for as long
    as any of its objects lives: with a logger each, an object's errors would be told to another.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.

    Returns:
        An object with `take_errors()` and `take_warnings()`: what was said since the last call.
    """

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: list[str] = []
            self._warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self._errors.append(message.strip())
            elif severity == trt.ILogger.Severity.WARNING:
                self._warnings.append(message.strip())

        def take_errors(self) -> list[str]:
            errors, self._errors = self._errors, []
            return list(dict.fromkeys(errors))

        def take_warnings(self) -> list[str]:
            warnings, self._warnings = self._warnings, []
            return list(dict.fromkeys(warnings))

    return Log()
