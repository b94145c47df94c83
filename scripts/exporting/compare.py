"""Are two runs of a detector the same, and if not, where do they differ most?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Difference", "Tolerance", "align_rows", "differences", "rounding"]

Array = npt.NDArray[Any]
Float64Array = npt.NDArray[np.float64]

ROUNDING_LIMIT = 100


@dataclass(frozen=True)
class Tolerance:
    """Two numbers are the same within `absolute` + `relative` x the expected one's magnitude."""

    absolute: float = 1e-4
    relative: float = 1e-4

    def allowed(self, expected: Array) -> Float64Array:
        """What each value may differ by."""
        return self.absolute + self.relative * np.abs(expected.astype(np.float64))

    def shares(
        self, expected: Array, found: Array, slack: Float64Array | float = 0.0
    ) -> Float64Array:
        """How much of the tolerance each difference uses: over 1 is too much.

        Values that are not finite are never the same, whatever the other one is.

        Args:
            expected: Any shape.
            found: The same shape.
            slack: Allowed in addition; broadcast to that shape.
        """
        wanted, got = expected.astype(np.float64), found.astype(np.float64)
        with np.errstate(invalid="ignore"):
            allowed = self.allowed(wanted) + slack
            distance = np.abs(got - wanted)
            used = np.divide(
                distance, allowed, out=np.where(distance > 0, np.inf, 0.0), where=allowed > 0
            )
        return np.where(np.isfinite(wanted) & np.isfinite(got), used, np.inf)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Where one output differs most, measured by the tolerance.

    Attributes:
        name: The output.
        index: Where in it, the image first.
        expected: The value there.
        found: What was found instead.
        share: How much of the tolerance that uses; infinite if a value is not finite.
        greatest: The greatest absolute difference anywhere in the output.
        shapes: Shapes of the two, if they differ; the values then mean nothing.
    """

    name: str
    index: tuple[int, ...] = ()
    expected: float = 0.0
    found: float = 0.0
    share: float = 0.0
    greatest: float = 0.0
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def __str__(self) -> str:
        """Say it in a sentence."""
        if self.shapes is not None:
            return f"output {self.name!r} has shape {self.shapes[1]}, expected {self.shapes[0]}"
        return (
            f"output {self.name!r} at {list(self.index)}: expected {self.expected:.7g}, found"
            f" {self.found:.7g}; greatest difference {self.greatest:.2g}"
        )


def differences(
    expected: Mapping[str, Array],
    found: Mapping[str, Array],
    tolerance: Tolerance,
    slack: Mapping[str, Float64Array] | None = None,
) -> list[Difference]:
    """Compare outputs by name.

    Args:
        expected: Outputs by name.
        found: The same outputs of another run.
        tolerance: What may differ.
        slack: What may differ in addition, by output; see `rounding`.

    Returns:
        One difference for each, the worst first.
    """
    result = [
        _difference(name, expected[name], found[name], tolerance, (slack or {}).get(name, 0.0))
        for name in expected
    ]
    return sorted(result, key=lambda item: item.share, reverse=True)


def rounding(expected: Array, exact: Array, tolerance: Tolerance) -> Float64Array:
    """How far rounding alone takes a run from the exact result.

    Where rounding strikes is chance, so each column (the last axis: x of all boxes, one class of
    all anchors) of an image gets the greatest it has anywhere. Far more than the tolerance is no
    rounding, but a choice that fell otherwise, such as another order of queries: that counts zero.

    Args:
        expected: float32 [N, ..., C].
        exact: The same computed in float64.
        tolerance: Of which rounding is at most `ROUNDING_LIMIT` times as much.

    Returns:
        [N, 1, ..., C], or of the shape of `expected` with fewer than three axes.
    """
    axes = tuple(range(1, expected.ndim - 1))
    distance = np.abs(expected.astype(np.float64) - exact)
    limit = ROUNDING_LIMIT * tolerance.allowed(expected)
    greatest = distance.max(axis=axes, keepdims=True, initial=0)
    plausible = (distance <= limit).all(axis=axes, keepdims=True)
    return np.where(plausible, greatest, 0.0)


def _difference(
    name: str,
    expected: Array,
    found: Array,
    tolerance: Tolerance,
    slack: Float64Array | float,
) -> Difference:
    if expected.shape != found.shape:
        return Difference(name=name, share=np.inf, shapes=(expected.shape, found.shape))
    if not expected.size:
        return Difference(name=name)
    shares = tolerance.shares(expected, found, slack)
    index = np.unravel_index(int(shares.argmax()), shares.shape)
    with np.errstate(invalid="ignore"):
        greatest = np.abs(expected.astype(np.float64) - found.astype(np.float64)).max()
    return Difference(
        name=name,
        index=tuple(int(place) for place in index),
        expected=float(expected[index]),
        found=float(found[index]),
        share=float(shares[index]),
        greatest=float(greatest),
    )


def align_rows(
    expected: Mapping[str, Array], found: Mapping[str, Array], tolerance: Tolerance
) -> tuple[dict[str, Array], int]:
    """Put rows that only changed places back.

    The queries of a DETR are a set: where two scores are almost equal, another rounding gives them
    in another order. Outputs with the same images and rows, [N, Q, ...], keep together: a row moves
    in all or in none.

    Args:
        expected: Outputs by name.
        found: The same outputs of another run.
        tolerance: Within which two rows are the same.

    Returns:
        `found` with rows in the order of `expected` as far as they have a counterpart there, and
        how many moved.
    """
    aligned = {name: np.array(value) for name, value in found.items()}
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, value in expected.items():
        if value.ndim >= 2 and value.size and found[name].shape == value.shape:
            groups.setdefault(value.shape[:2], []).append(name)
    moved = 0
    for (images, _), names in groups.items():
        for image in range(images):
            wanted, got = (
                _rows([side[name][image] for name in names]) for side in (expected, found)
            )
            order = _order(wanted, got, tolerance)
            moved += int((order != np.arange(len(order))).sum())
            for name in names:
                aligned[name][image] = found[name][image][order]
    return aligned, moved


def _rows(parts: list[Array]) -> Float64Array:
    """Outputs of one image, [Q, ...] each, side by side: [Q, D]."""
    flat = [part.reshape(len(part), math.prod(part.shape[1:])) for part in parts]
    return np.concatenate(flat, axis=1, dtype=np.float64)


def _order(
    expected: Float64Array, found: Float64Array, tolerance: Tolerance
) -> npt.NDArray[np.int64]:
    """For each expected row the found one that is it, each used once."""
    order = np.arange(len(expected))
    out_of_place = np.flatnonzero((tolerance.shares(expected, found) > 1).any(axis=1))
    left = list(out_of_place)
    unmatched = []
    for row in out_of_place:
        shares = tolerance.shares(expected[row], found[left]).max(axis=1)
        best = int(shares.argmin())
        if shares[best] > 1:
            unmatched.append(row)
        else:
            order[row] = left.pop(best)
    order[unmatched] = left
    return order
