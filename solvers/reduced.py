"""Rows and losses without what all their entries share: the same choices, and a tighter linear relaxation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arrays import Bools, Ints
from .certificate import ScaledTables
from .rows import FREE


@dataclass(frozen=True, eq=False)
class ReducedRow:
    """A row without common divisor: weights (n, m) = (a - the item's least a) / divisor >= 0; `base` is the sum of those least.

    With one option an item, the row is ceil((least - base) / divisor) <= sum weights <= floor((most - base) / divisor), of
    which the linear relaxation is tighter than that of the row as it was.
    """

    weights: Ints
    base: int
    divisor: int

    @classmethod
    def of(cls, tables: ScaledTables, row: int) -> ReducedRow:
        table = tables.rows.table(row)
        least = np.where(tables.allowed, table, FREE).min(axis=1, keepdims=True)
        above = np.where(tables.allowed, table - least, 0)
        divisor = int(np.gcd.reduce(above, axis=None)) or 1
        return cls(above // divisor, int(least.sum()), divisor)

    def bounds(self, least: int, most: int) -> tuple[int | None, int | None]:
        """The bounds of the weights' sum that follow from those of the row, None for those that every choice keeps."""
        lower, upper = -((self.base - least) // self.divisor), (most - self.base) // self.divisor
        highest = int(self.weights.max(axis=1).sum())
        return (lower if lower > 0 else None), (upper if upper < highest else None)


def reduced_loss(loss: Ints, allowed: Bools) -> tuple[Ints, int]:
    """(loss - the item's least) / divisor (n, m) >= 0, and the divisor: the greatest that all of them have in common."""
    above = np.where(allowed, loss - np.where(allowed, loss, FREE).min(axis=1, keepdims=True), 0)
    divisor = int(np.gcd.reduce(above, axis=None)) or 1
    return above // divisor, divisor
