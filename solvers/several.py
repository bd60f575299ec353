"""Several resources: the linear relaxation and the last resort, both through HiGHS, and the repair between them.

The relaxation of the programme in `problem.py`, with shares x[i, j] in place of choices, is

    minimise sum E x    subject to    sum_ij c[r, i, j] x[i, j] <= B[r],    sum_j x[i, j] = 1,    x >= 0

Its dual values are the best multipliers; at a vertex, no more items than resources are split. HiGHS computes in floating
point: multipliers are certified afterwards whatever they are, and a choice counts only once it keeps the limits in integers.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from .certificate import ScaledTables
from .problem import Bools, Floats, Ints

ROUNDS = 4  # of tightening a limit by what HiGHS's tolerance let a choice exceed it


def relax_several(tables: ScaledTables, deadline: float) -> tuple[Ints, tuple[Fraction, ...]]:
    """The relaxation's vertex, each item rounded to its largest share (n,), and a multiplier for each resource.

    The choice may exceed limits. Without a solution by the deadline: the options of least loss, and multipliers of zero.
    """
    from scipy.optimize import linprog

    programme = _Programme.of(tables.loss.astype(np.float64), tables)
    result = linprog(
        programme.objective,
        A_ub=programme.spent,
        b_ub=programme.limit,
        A_eq=programme.one_each,
        b_eq=np.ones(len(tables.loss)),
        method="highs",
        options=_time_options(deadline),
    )
    if result.status != 0 or result.x is None:
        largest = np.iinfo(np.int64).max
        return np.where(tables.allowed, tables.loss, largest).argmin(axis=1), (Fraction(0),) * len(tables.limit)
    prices = np.maximum(0.0, -result.ineqlin.marginals) * programme.objective_unit / programme.limit_unit
    return programme.choice_of(result.x), tuple(Fraction(float(price)) for price in prices)


def repair(tables: ScaledTables, choice: Ints) -> Ints | None:
    """Move single items until every limit is kept: each time the move that loses least for what it takes off the excess.

    None where no single move takes anything off. The excess is the sum over resources of (cost - limit) / limit where positive.
    """
    choice = choice.copy()
    rows = np.arange(len(choice))
    unit = np.maximum(tables.limit, 1)[:, None, None]
    used = tables.cost[:, rows, choice].sum(axis=1)
    while np.any(used > tables.limit):
        after = used[:, None, None] + tables.cost - tables.cost[:, rows, choice][:, :, None]
        over = (np.maximum(after - tables.limit[:, None, None], 0) / unit).sum(axis=0)
        relief = (np.maximum(used - tables.limit, 0) / unit[:, 0, 0]).sum() - over
        lost = tables.loss - tables.loss[rows, choice][:, None]
        # Relief of the order of rounding could go on for ever.
        score = np.divide(lost, relief, out=np.full(lost.shape, np.inf), where=tables.allowed & (relief > 1e-12))
        item, option = divmod(int(score.argmin()), score.shape[1])
        if score[item, option] == np.inf:
            return None
        used = after[:, item, option]
        choice[item] = option
    return choice


def search_several(tables: ScaledTables, deadline: float) -> tuple[Ints | None, bool]:
    """A choice within the limits by branch and bound, and whether the answer is sure: (None, True) means that there is none."""
    return _least(tables.loss.astype(np.float64), tables, np.ones(len(tables.limit), dtype=np.bool_), deadline)


def smallest_limits(tables: ScaledTables, least: tuple[int, ...], deadline: float) -> tuple[int, ...]:
    """`Solution.smallest_limit` of an infeasible problem; `least` are the least totals.

    Where the deadline comes first, the least total stands in for the smallest limit of that resource.
    """
    smallest = list(least)
    for resource in range(len(least)):
        others = np.arange(len(least)) != resource
        choice, _ = _least(tables.cost[resource].astype(np.float64), tables, others, deadline)
        if choice is not None:
            smallest[resource] = int(tables.cost[resource, np.arange(len(choice)), choice].sum())
    return tuple(smallest)


@dataclass(frozen=True, eq=False)
class _Programme:
    """The programme in the form that HiGHS takes: one variable for each allowed pair (row, option).

    Objective and limits are measured in units that make them about one and a thousand, where HiGHS's absolute
    tolerances (1e-7, 1e-6) are small.
    """

    rows: Ints
    options: Ints
    shape: tuple[int, ...]
    objective: Floats
    objective_unit: float
    spent: Floats
    limit: Floats
    limit_unit: Floats
    one_each: Any  # scipy's stubs know no sparse matrices in linear programmes

    @classmethod
    def of(cls, loss: Floats, tables: ScaledTables) -> _Programme:
        from scipy.sparse import csr_array

        rows, options = np.nonzero(tables.allowed)
        objective = loss[rows, options]
        objective_unit = float(np.abs(objective).max()) or 1.0
        limit_unit = np.maximum(tables.limit, 1) / 1024
        one_each = csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(len(loss), len(rows)))
        spent = tables.cost[:, rows, options] / limit_unit[:, None]
        limit = tables.limit / limit_unit
        return cls(rows, options, loss.shape, objective / objective_unit, objective_unit, spent, limit, limit_unit, one_each)

    def choice_of(self, shares: Floats) -> Ints:
        table = np.full(self.shape, -1.0)
        table[self.rows, self.options] = shares
        choice: Ints = table.argmax(axis=1)
        return choice


def _least(loss: Floats, tables: ScaledTables, limited: Bools, deadline: float) -> tuple[Ints | None, bool]:
    """The choice of least `loss` (n, m) that keeps the `limited` resources; (None, True) when HiGHS proves that none does."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    programme = _Programme.of(loss, tables)
    limit = programme.limit[limited]
    rows = np.arange(len(loss))
    for _ in range(ROUNDS):
        result = milp(
            programme.objective,
            integrality=np.ones(len(programme.rows), dtype=np.int64),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(programme.one_each, 1, 1),
                LinearConstraint(programme.spent[limited], -np.inf, limit),
            ],
            options=_time_options(deadline, mip_rel_gap=0.0),
        )
        if result.x is None:
            return None, result.status == 2
        choice = programme.choice_of(result.x)
        excess = (tables.cost[:, rows, choice].sum(axis=1) - tables.limit)[limited]
        if np.all(excess <= 0):
            return choice, True
        limit = limit - np.maximum(excess, 0) / programme.limit_unit[limited]
    return None, False


def _time_options(deadline: float, **others: float) -> Any:
    return others if deadline == math.inf else {**others, "time_limit": max(0.01, deadline - time.perf_counter())}
