"""Labels that can be made one: what tells which channels are coupled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["IntArray", "Labels"]

IntArray = npt.NDArray[np.int64]


class Labels:
    """Disjoint sets of numbered labels (Galler and Fischer, 1964), some of them frozen."""

    def __init__(self) -> None:
        """Begin with none."""
        self._parent: list[int] = []
        self._frozen: list[bool] = []

    def fresh(self, count: int, *, frozen: bool = False) -> IntArray:
        """Make labels, each a set of its own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        self._frozen.extend([frozen] * count)
        return np.arange(start, start + count, dtype=np.int64)

    def couple(self, first: IntArray, second: IntArray) -> None:
        """Unite the sets of two rows of labels, pair by pair; one frozen freezes both."""
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            root, merged = self._find(one), self._find(other)
            self._parent[merged] = root
            self._frozen[root] |= self._frozen[merged]

    def freeze(self, labels: IntArray) -> None:
        """Say that the sets of these labels cannot be removed."""
        for label in labels.tolist():
            self._frozen[self._find(label)] = True

    def frozen(self, label: int) -> bool:
        """Tell whether the set of a label cannot be removed."""
        return self._frozen[self._find(label)]

    def sets(self, labels: IntArray) -> IntArray:
        """The number of the set of each label: equal for those that are coupled."""
        return np.array([self._find(label) for label in labels.tolist()], np.int64)

    def _find(self, label: int) -> int:
        while self._parent[label] != label:
            self._parent[label] = label = self._parent[self._parent[label]]
        return label
