"""From sums over batches to a loss table with standard errors.

Batch b contributes the sums S_b (units, formats) over N_b predictions. The loss is the ratio sum_b S_b / sum_b N_b and its
standard error that of a ratio over independent batches:

    stderr^2 = B / (B - 1) * sum_b (S_b - loss N_b)^2 / (sum_b N_b)^2

Anything else that follows from sums over batches has its standard error from leaving out one batch after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..kernels.formats import FORMATS
from .report import Floats
from .units import Unit, admits


@dataclass(frozen=True, eq=False)
class Estimate:
    """`loss` and `stderr` (units, formats), NaN where a unit does not admit a format; `quantity` says what they count;
    `notes` are sentences for whoever reads the plan."""

    loss: Floats
    stderr: Floats | None
    batches: int
    quantity: str
    notes: tuple[str, ...] = ()


def ratio_estimate(sums: Sequence[Floats], counts: Sequence[int], quantity: str, notes: tuple[str, ...] = ()) -> Estimate:
    """The Estimate of per-batch `sums`, each (units, formats), over `counts` predictions each.

    Negative losses, which a measured difference can have, are set to zero and counted in the notes.
    """
    stacked, numbers = np.stack(sums), np.asarray(counts, dtype=np.float64)
    total = numbers.sum()
    loss = stacked.sum(axis=0) / total
    residual = stacked - loss * numbers[:, None, None]
    variance = len(sums) / max(1, len(sums) - 1) * np.square(residual).sum(axis=0) / total**2
    return _clipped(loss, np.sqrt(variance) if len(sums) > 1 else None, len(sums), quantity, notes)


def jackknife_estimate(
    sums: Sequence[Floats], table: Callable[[Floats], Floats], quantity: str, notes: tuple[str, ...] = ()
) -> Estimate:
    """The Estimate of `table(sum of all batches)`, any function of per-batch `sums` of one shape, (units, formats):

    stderr^2 = (B - 1) / B * sum_b (table without batch b - their mean)^2
    """
    total = np.sum(sums, axis=0)
    loss = table(total)
    if len(sums) < 2:
        return _clipped(loss, None, len(sums), quantity, notes)
    without = np.stack([table(total - one) for one in sums])
    variance = (len(sums) - 1) / len(sums) * np.square(without - without.mean(axis=0)).sum(axis=0)
    return _clipped(loss, np.sqrt(variance), len(sums), quantity, notes)


def _clipped(loss: Floats, stderr: Floats | None, batches: int, quantity: str, notes: tuple[str, ...]) -> Estimate:
    negative = int((loss < 0).sum())
    if negative:
        notes = (*notes, f"{negative} of {int(np.isfinite(loss).sum())} estimates were negative and are set to zero")
    return Estimate(np.where(loss < 0, 0.0, loss), stderr, batches, quantity, notes)


def empty_table(units: Sequence[Unit], formats: Sequence[str]) -> Floats:
    """Zeros of shape (units, formats), NaN where the unit does not admit the format."""
    return np.array([[0.0 if admits(unit, FORMATS[fmt]) else np.nan for fmt in formats] for unit in units])


def measured_pairs(unit: Unit, formats: Sequence[str]) -> list[tuple[int, str]]:
    """The formats of `unit` whose loss must be measured: those it admits, its own left out (its loss is zero)."""
    return [(f, fmt) for f, fmt in enumerate(formats) if fmt != unit.native and admits(unit, FORMATS[fmt])]
