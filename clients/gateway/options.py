"""The options of a request, from JSON, form fields, query or headers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from gateway.problems import Problem

__all__ = ["RequestOptions"]

_MOST_DETECTIONS = 2**31 - 1
_LONGEST_TIMEOUT_S = 3600.0
_TIMEOUT_HEADER = "x-request-timeout"


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What a request may set; None leaves the default.

    Attributes:
        score_threshold: Lowest score to report, in [0, 1].
        iou_threshold: Overlap of two boxes of a class above which the lower one goes, in [0, 1].
        max_detections: Most detections for an image.
        timeout: Seconds that the client waits at most.
    """

    score_threshold: float | None = None
    iou_threshold: float | None = None
    max_detections: int | None = None
    timeout: float | None = None

    def over(self, other: RequestOptions) -> RequestOptions:
        """These, and where ``other`` has one, that of the other."""
        if other == _NOTHING:
            return self
        chosen = {}
        for field in fields(self):
            theirs = getattr(other, field.name)
            chosen[field.name] = getattr(self, field.name) if theirs is None else theirs
        return RequestOptions(**chosen)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> RequestOptions:
        """Options as the members of a JSON object that has no others.

        Raises:
            Problem: 400, one is unknown or out of its range.
        """
        if not document:
            return _NOTHING
        for name in document:
            if name not in _CHECKS:
                raise Problem(400, f"unknown member {name[:60]!r}: options are {_NAMES}")
        return cls(**{name: _CHECKS[name](name, value) for name, value in document.items()})

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], headers: Mapping[str, str]) -> RequestOptions:
        """Options as fields of a form or a query; the time may be the header X-Request-Timeout.

        Raises:
            Problem: 400, one is unknown or out of its range.
        """
        values: dict[str, Any] = {}
        if header := headers.get(_TIMEOUT_HEADER):
            values["timeout"] = _timeout("X-Request-Timeout", _number(_TIMEOUT_HEADER, header))
        for name, text in texts.items():
            if name not in _CHECKS:
                raise Problem(400, f"unknown field {name[:60]!r}: options are {_NAMES}")
            values[name] = _CHECKS[name](name, _number(name, text))
        return cls(**values) if values else _NOTHING


def _number(name: str, text: str) -> int | float:
    try:
        if not text.isascii() or "_" in text or text != text.strip():
            raise ValueError
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        raise Problem(400, f"{name} must be a number, not {text[:40]!r}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _fraction(name: str, value: Any) -> float:
    if not _is_number(value) or not 0 <= value <= 1:
        raise Problem(400, f"{name} must be a number from 0 to 1")
    return float(value)


def _count(name: str, value: Any) -> int:
    if _is_number(value) and 1 <= value <= _MOST_DETECTIONS and value == int(value):
        return int(value)
    raise Problem(400, f"{name} must be an integer from 1 to {_MOST_DETECTIONS}")


def _timeout(name: str, value: Any) -> float:
    if not _is_number(value) or not 0 < value <= _LONGEST_TIMEOUT_S or not math.isfinite(value):
        raise Problem(
            400, f"{name} must be a number of seconds above 0 and up to {_LONGEST_TIMEOUT_S:g}"
        )
    return float(value)


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "score_threshold": _fraction,
    "iou_threshold": _fraction,
    "max_detections": _count,
    "timeout": _timeout,
}
_NAMES = ", ".join(_CHECKS)
_NOTHING = RequestOptions()
