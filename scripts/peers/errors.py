"""What can go wrong in a comparison."""

from __future__ import annotations

__all__ = ["ComparisonError"]


class ComparisonError(RuntimeError):
    """A peer cannot be compared; the message says why."""
