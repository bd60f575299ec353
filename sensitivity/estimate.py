"""From sums over batches to a loss table with standard errors.

Batch b contributes the sums S_b (units, formats) over N_b predictions. The loss is the ratio sum_b S_b / sum_b N_b and its
standard error that of a ratio over independent batches:

    stderr^2 = B / (B - 1) * sum_b (S_b - loss N_b)^2 / (sum_b N_b)^2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..kernels.formats import FORMATS
from .render import admits
from .report import Floats
from .units import Unit


@dataclass(frozen=True, eq=False)
class Estimate:
    """`loss` and `stderr` (units, formats), NaN where a unit does not admit a format; `quantity` says what they count."""

    loss: Floats
    stderr: Floats | None
    batches: int
    quantity: str


def ratio_estimate(sums: Sequence[Floats], counts: Sequence[int], quantity: str) -> Estimate:
    """The Estimate of per-batch `sums`, each (units, formats), over `counts` predictions each."""
    stacked, numbers = np.stack(sums), np.asarray(counts, dtype=np.float64)
    total = numbers.sum()
    loss = stacked.sum(axis=0) / total
    if len(sums) < 2:
        return Estimate(loss, None, len(sums), quantity)
    residual = stacked - loss * numbers[:, None, None]
    variance = len(sums) / (len(sums) - 1) * np.square(residual).sum(axis=0) / total**2
    return Estimate(loss, np.sqrt(variance), len(sums), quantity)


def empty_table(units: Sequence[Unit], formats: Sequence[str]) -> Floats:
    """Zeros of shape (units, formats), NaN where the unit does not admit the format."""
    return np.array([[0.0 if admits(unit, FORMATS[fmt]) else np.nan for fmt in formats] for unit in units])


def measured_pairs(unit: Unit, formats: Sequence[str]) -> list[tuple[int, str]]:
    """The formats of `unit` whose loss must be measured: those it admits, its own left out (its loss is zero)."""
    return [(f, fmt) for f, fmt in enumerate(formats) if fmt != unit.native and admits(unit, FORMATS[fmt])]
