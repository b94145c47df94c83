"""The error of the optimisations."""

from __future__ import annotations

__all__ = ["OptimizationError"]


class OptimizationError(ValueError):
    """A detector cannot be optimised as asked; the message says why and what would do."""
