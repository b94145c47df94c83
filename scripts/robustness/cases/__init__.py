"""The faults of `scripts/chaos.py`."""

from robustness.cases import clients, clock, killing, restarts, storage
from robustness.trial import Case

__all__ = ["CASES"]

CASES: tuple[Case, ...] = (
    *killing.CASES,
    *restarts.CASES,
    *clients.CASES,
    *storage.CASES,
    *clock.CASES,
)
