"""HiGHS through SciPy (Huangfu and Hall 2018): the least of a sum under rows, with whole choices or with shares.

One variable for each allowed pair of item and option:

    minimise sum E x    subject to    sum_j x[i, j] = 1,    least[q] <= sum_ij a[q, i, j] x[i, j] <= most[q]

HiGHS has absolute tolerances of about 1e-6 and 1e-7, so losses are measured in units that make the largest a million, and
rows in units that make their bounds a thousand, except where whole numbers are small as they are. A choice counts only once
its totals keep every bound in integers, and the best it can claim is "within 1e-7 of the largest loss".
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from .arrays import Bools, Floats, Ints
from .certificate import ScaledTables
from .reduced import ReducedRow, reduced_loss
from .rows import FREE

LARGEST = 2.0**20  # entry of the objective: HiGHS calls a choice optimal when it is within 1e-6, absolute, of its bound
ROW = 1024.0  # bound of a row, whose entries are told in such a unit, where they are no small whole numbers
ROUNDS = 4  # of tightening a bound by what HiGHS's tolerance let a choice break it


@dataclass(frozen=True, eq=False)
class Found:
    """`choice` (n,) or None, and whether HiGHS was done: a choice is then its optimum, None a proof that there is none."""

    choice: Ints | None
    done: bool


@dataclass(frozen=True, eq=False)
class Programme:
    """The programme in the form that HiGHS takes: variable k stands for the pair (item[k], option[k]).

    One `unit` of a row of it is so many units of the problem's row, whose common divisor and least totals are taken off.
    """

    item: Ints
    option: Ints
    shape: tuple[int, ...]
    one_each: Any  # sparse matrices have no types in scipy's stubs
    rows: Any
    least: Floats
    most: Floats
    unit: Floats

    @classmethod
    def of(cls, tables: ScaledTables) -> Programme:
        from scipy.sparse import csr_array, vstack

        item, option = np.nonzero(tables.allowed)
        one_each = csr_array((np.ones(len(item)), (item, np.arange(len(item)))), shape=(len(tables.loss), len(item)))
        sparse, bounds, unit = [], [], []
        for row, edges in enumerate(zip(tables.rows.least.tolist(), tables.rows.most.tolist(), strict=True)):
            reduced = ReducedRow.of(tables, row)
            lower, upper = reduced.bounds(*edges)
            largest = max(abs(lower or 0), abs(upper or 0), int(reduced.weights.max()))
            each = 1.0 if largest <= LARGEST else largest / ROW
            sparse.append(csr_array(reduced.weights[item, option][None] / each))
            bounds.append((-math.inf if lower is None else lower / each, math.inf if upper is None else upper / each))
            unit.append(each * reduced.divisor)
        least, most = np.array(bounds).T
        return cls(item, option, tables.loss.shape, one_each, vstack(sparse, format="csr"), least, most, np.array(unit))

    def table(self, shares: Floats) -> Floats:
        """Values of the variables as a table (n, m), -1 where nothing is allowed."""
        table = np.full(self.shape, -1.0)
        table[self.item, self.option] = shares
        return table


@dataclass(frozen=True, eq=False)
class Relaxed:
    """The linear relaxation: its dual values, one a row, in scaled loss a unit of cost, and its `shares` (n, m)."""

    multipliers: list[Fraction]
    shares: Floats


def relax_by_highs(tables: ScaledTables, deadline: float) -> Relaxed | None:
    """Solve the linear relaxation; None where it has no solution, or HiGHS finds none in time."""
    from scipy.optimize import linprog
    from scipy.sparse import vstack

    programme = Programme.of(tables)
    upper, lower = np.isfinite(programme.most), np.isfinite(programme.least)
    objective, unit = _objective(tables.loss, tables, programme)
    result = linprog(
        objective,
        A_ub=vstack([programme.rows[upper], -programme.rows[lower]], format="csr"),
        b_ub=np.append(programme.most[upper], -programme.least[lower]),
        A_eq=programme.one_each,
        b_eq=np.ones(programme.shape[0]),
        method="highs",
        options=_time_options(deadline, dual_feasibility_tolerance=1e-10),
    )
    if result.status != 0 or result.x is None:
        return None
    duals = np.maximum(0.0, -result.ineqlin.marginals)
    prices = np.zeros(len(tables.rows))
    prices[upper] += duals[: upper.sum()]
    prices[lower] -= duals[upper.sum() :]
    multipliers = [Fraction(float(price)) for price in prices * unit / programme.unit]
    return Relaxed(multipliers, programme.table(result.x))


def least(
    loss: Ints,
    tables: ScaledTables,
    deadline: float,
    *,
    without: Bools | None = None,
    nodes: int | None = None,
    gap: float = 0.0,
) -> Found:
    """The choice of least `loss` (n, m) that keeps the rows; the best found, where `nodes` of the search tree do not settle it.

    `gap`: a difference of loss that is not worth searching for. `without` (2, q): lower and upper bounds to leave out.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    programme = Programme.of(tables)
    lower, upper = programme.least.copy(), programme.most.copy()
    rows_least, rows_most = tables.rows.least.copy(), tables.rows.most.copy()
    if without is not None:
        lower[without[0]], rows_least[without[0]] = -np.inf, -FREE
        upper[without[1]], rows_most[without[1]] = np.inf, FREE
    objective, unit = _objective(loss, tables, programme)
    # HiGHS's gap is relative to the objective, of which this is a fair guess from above.
    relative = gap / unit / max(1.0, float(objective.sum()) / loss.shape[1])
    for tightened in range(ROUNDS):
        if time.perf_counter() >= deadline:
            return Found(None, False)
        result = milp(
            objective,
            integrality=np.ones(len(objective), dtype=np.int64),
            bounds=Bounds(0, 1),
            constraints=[LinearConstraint(programme.one_each, 1, 1), LinearConstraint(programme.rows, lower, upper)],
            options=_time_options(deadline, mip_rel_gap=relative, **({} if nodes is None else {"node_limit": nodes})),
        )
        if result.x is None:
            # Where a bound was tightened, nothing within it proves nothing about the problem.
            return Found(None, result.status == 2 and not tightened)
        choice = programme.table(result.x).argmax(axis=1)
        totals = tables.rows.totals(choice)
        over, under = totals - rows_most, rows_least - totals
        if np.all(over <= 0) and np.all(under <= 0):
            return Found(choice, result.status == 0)
        upper = np.where(over > 0, upper - over / programme.unit, upper)
        lower = np.where(under > 0, lower + under / programme.unit, lower)
    return Found(None, False)


def _objective(loss: Ints, tables: ScaledTables, programme: Programme) -> tuple[Floats, float]:
    """The objective (k,) and its unit: whole numbers where they are small, which HiGHS makes use of; else up to LARGEST."""
    reduced, divisor = reduced_loss(loss, tables.allowed)
    largest = int(reduced.max())
    each = 1.0 if largest <= LARGEST else largest / LARGEST
    return reduced[programme.item, programme.option] / each, each * divisor


def _time_options(deadline: float, **others: float) -> Any:
    return others if deadline == math.inf else {**others, "time_limit": max(0.01, deadline - time.perf_counter())}
