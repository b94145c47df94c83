"""What a promotion ends with when it does not succeed."""

from __future__ import annotations

__all__ = ["GateError", "PromotionError"]


class PromotionError(RuntimeError):
    """The promotion cannot be made; the message says why, and what would help."""


class GateError(PromotionError):
    """The new version is not good enough.

    Attributes:
        gate: Which gate it did not pass.
    """

    def __init__(self, gate: str, why: str) -> None:
        super().__init__(f"{gate}: {why}")
        self.gate = gate
