"""Why no choice fits: the least limit of each resource that would do, and constraints that cannot all hold."""

from __future__ import annotations

import time

import numpy as np

from .certificate import ScaledTables
from .highs import least
from .problem import ChoiceProblem, Solution, without_choice
from .rows import FREE

SECONDS = 10.0  # spent on an explanation at most, where no deadline is nearer


def explain(tables: ScaledTables, deadline: float) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """`Solution.smallest_limit` and `Solution.blocking` of an infeasible problem.

    The set of constraints is found by leaving them out one at a time for good as long as no choice fits (a deletion filter;
    Chinneck 2008), so each of those left is needed for the contradiction. What the deadline leaves undecided stays: the least
    total stands in for a smallest limit, and a constraint is named although it may not be needed.
    """
    deadline = min(deadline, time.perf_counter() + SECONDS)
    rows = tables.rows
    resources = len(rows.cost)
    largest = np.iinfo(np.int64).max
    smallest = [int(np.where(tables.allowed, cost, largest).min(axis=1).sum()) for cost in rows.cost]
    for resource in range(resources):
        without = np.zeros((2, len(rows)), dtype=np.bool_)
        without[1, resource] = True
        found = least(rows.cost[resource], tables, deadline, without=without)
        if found.choice is not None and found.done:
            smallest[resource] = int(rows.totals(found.choice)[resource])
    without = np.array([rows.least == -FREE, rows.most == FREE])
    without[0, :resources] |= rows.least[:resources] <= 0
    nothing = np.zeros_like(tables.loss)
    for row, side in np.argwhere(~without.T).tolist():
        without[side, row] = True
        found = least(nothing, tables, deadline, without=without)
        without[side, row] = found.choice is None and found.done
    names = ("the floor of", "the limit of")
    blocking = [
        f"{names[side]} {rows.name(row)}" if row < resources else rows.name(row) for row, side in np.argwhere(~without.T).tolist()
    ]
    return tuple(smallest), tuple(dict.fromkeys(blocking))


def no_choice(
    problem: ChoiceProblem, tables: ScaledTables, proven: bool, solver: str, started: float, deadline: float
) -> Solution:
    """The answer of a solver that found nothing: INFEASIBLE with an explanation where `proven`, else LIMIT."""
    if not proven:
        return without_choice(problem, None, solver, started)
    smallest, blocking = explain(tables, deadline)
    return without_choice(problem, smallest, solver, started, blocking)
