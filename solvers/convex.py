"""The linear relaxation by CVXPY, rounded: shares 0 <= x[i, j] <= 1 of each option in place of choices.

Its dual values are the best multipliers there are. CVXPY stands here as a second way to the relaxation of `highs.py`, and as
the door to whatever conic solver is installed; `rate_distortion.py` is what it is made for.
"""

from __future__ import annotations

import math
import time
from fractions import Fraction

import numpy as np

from .arrays import Ints
from .certificate import ScaledTables, answer, scaled
from .cvx import cvxpy_module, run
from .highs import Programme
from .hull import fill, relax
from .infeasible import no_choice
from .lagrangian import DualSolution, near_choice
from .problem import ChoiceProblem, Solution, least_costs, without_choice

REPAIR_SECONDS = 20.0  # for the integer programme, whose work has no end that is known
WHOLE = 1e-6  # shares nearer to one than this are whole
LARGEST = 2.0**20  # of the relaxation's losses, so that HiGHS's tolerance is 1e-16 of it


def solve(problem: ChoiceProblem, *, time_limit: float | None = None) -> Solution:
    """Linear relaxation by CVXPY and HiGHS, for any rows and rules: shares rounded to options, then repaired and certified.

    Each item takes the option with the largest share. Items of divided shares, and those nearest to changing their minds, are
    chosen again by a small integer programme; for one limit and nothing else, greedily (`hull.fill`). The multipliers are the
    relaxation's dual values: of all multipliers they give the best bound, to HiGHS's tolerances.

    OPTIMAL only when the gap is zero, INFEASIBLE when HiGHS proves it. LIMIT when `time_limit` cut the work short: with what
    rounding gave, where that keeps the rows, and for one limit and nothing else with the choice of `hull`.
    """
    started = time.perf_counter()
    deadline = math.inf if time_limit is None else started + time_limit
    if problem.plain and (least := least_costs(problem))[0] > problem.limit[0]:
        return without_choice(problem, least, "convex", started, ("the limit of resource 0",))
    tables = scaled(problem)
    relaxation = relax_by_cvxpy(tables, deadline)
    proven, repaired = False, _filled(tables, relaxation) if problem.plain else None
    if repaired is None:
        repaired, proven = near_choice(tables, relaxation, min(deadline, time.perf_counter() + REPAIR_SECONDS))
    kept = [choice for choice in (repaired, relaxation.choice) if choice is not None and not tables.rows.broken(choice)]
    if not kept:
        return no_choice(problem, tables, proven, "convex", started, deadline)
    items = np.arange(problem.items)
    best = min(kept, key=lambda choice: int(tables.loss[items, choice].sum()))
    stopped = not relaxation.converged or repaired is None
    return answer(problem, best, relaxation.multipliers, "convex", started, stopped=stopped, tables=tables)


def _filled(tables: ScaledTables, relaxation: DualSolution) -> Ints:
    """For one limit and nothing else: divided items on their cheapest option, and what that leaves of the limit spent.

    Without shares in time, or where the limit is beyond their tolerance, from the choice of `hull.relax` instead.
    """
    cost, items = tables.cost[0], np.arange(len(tables.loss))
    cheapest = np.where(tables.allowed, cost, np.iinfo(np.int64).max).argmin(axis=1)
    choice = np.where(relaxation.unsettled, cheapest, relaxation.choice)
    # Differences below HiGHS's tolerance: the cheapest of the options that lose no more.
    no_worse = tables.allowed & (tables.loss <= tables.loss[items, choice][:, None])
    choice = np.where(no_worse, cost, np.iinfo(np.int64).max).argmin(axis=1)
    within = relaxation.converged and cost[items, choice].sum() <= tables.limit[0]
    return fill(tables, choice if within else relax(tables).choice)


def relax_by_cvxpy(tables: ScaledTables, deadline: float) -> DualSolution:
    """The linear relaxation: its multipliers, and for each item the option with the largest share.

    Where it has no solution, or none is found in time: multipliers of zero, the least losses, and all items unsettled.
    """
    cvxpy = cvxpy_module()
    programme = Programme.of(tables)
    upper, lower = np.isfinite(programme.most), np.isfinite(programme.least)
    above = tables.loss - np.where(tables.allowed, tables.loss, np.iinfo(np.int64).max).min(axis=1, keepdims=True)
    objective = above[programme.item, programme.option].astype(np.float64)
    unit = float(objective.max()) / LARGEST or 1.0
    shares = cvxpy.Variable(len(objective), nonneg=True)
    below = programme.rows[upper] @ shares <= programme.most[upper]
    beyond = -programme.rows[lower] @ shares <= -programme.least[lower]
    constraints = [programme.one_each @ shares == 1] + [below] * bool(upper.any()) + [beyond] * bool(lower.any())
    outcome = run(cvxpy.Problem(cvxpy.Minimize((objective / unit) @ shares), constraints), "HIGHS", deadline)
    if outcome not in ("solved", "inaccurate"):
        # What is impossible for shares is so for options, which the integer programme over all items then says.
        least = np.where(tables.allowed, tables.loss, np.iinfo(np.int64).max).argmin(axis=1)
        return DualSolution([Fraction(0)] * len(tables.rows), least, np.ones(len(least), dtype=np.bool_), False)
    prices = np.zeros(len(tables.rows))
    for row, side, sign in ((upper, below, 1), (lower, beyond, -1)):
        if row.any():
            prices[row] += sign * np.maximum(0.0, side.dual_value)
    multipliers = [Fraction(float(price)) for price in prices * unit / programme.unit]
    table = programme.table(shares.value)
    return DualSolution(multipliers, table.argmax(axis=1), table.max(axis=1) < 1 - WHOLE, outcome == "solved")
