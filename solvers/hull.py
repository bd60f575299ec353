"""Solve on the convex hull: the linear relaxation, its multipliers, and a good choice beside it.

One resource: the relaxation is solved by taking hull steps (`frontier.hull_steps`) until the next does not fit. The slope
of that step is the multiplier, exactly; the choice before it, filled up with whatever single moves still fit, is the
answer, and loses less than one step more than the lower bound. Several resources (`several.py`): HiGHS solves the
relaxation, its dual values are the multipliers, and its rounded choice is repaired until it keeps every limit; where that
fails, branch and bound decides whether any choice does.

Optimal by luck only (when the gap is zero), but fast and always certified.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .certificate import ScaledTables, answer, priced_losses, scaled
from .frontier import hull_steps
from .problem import ChoiceProblem, Ints, Solution, least_costs, without_choice
from .several import relax_several, repair, search_several, smallest_limits


@dataclass(frozen=True, eq=False)
class Relaxation:
    """The linear relaxation of a problem with one resource, solved exactly.

    `choice` (n,) keeps the limit, and each of its options minimises loss + multiplier * cost, exactly. The lower bound is
    its loss less multiplier * (what it leaves of the limit); no other multiplier gives a greater one.
    """

    choice: Ints
    multiplier: Fraction


def solve(problem: ChoiceProblem, *, time_limit: float | None = None) -> Solution:
    """A choice near the optimum with the best bound that multipliers can give.

    `time_limit` in seconds is for HiGHS, which several resources need; one resource takes milliseconds and ignores it.
    With several, the status is LIMIT and the choice None where HiGHS neither finds a choice nor proves that there is none.
    """
    started = time.perf_counter()
    least = least_costs(problem)
    tables = scaled(problem)
    if problem.resources > 1:
        return _solve_several(problem, tables, least, started, time_limit)
    if least[0] > problem.limit[0]:
        return without_choice(problem, least, "hull", started)
    relaxation = relax(tables)
    return answer(problem, fill(tables, relaxation.choice), [relaxation.multiplier], "hull", started)


def _solve_several(
    problem: ChoiceProblem, tables: ScaledTables, least: tuple[int, ...], started: float, time_limit: float | None
) -> Solution:
    deadline = math.inf if time_limit is None else started + time_limit
    if np.any(np.array(least) > problem.limit):
        return without_choice(problem, smallest_limits(tables, least, deadline), "hull", started)
    vertex, multipliers = relax_several(tables, deadline)
    choice, decided = repair(tables, vertex), True
    if choice is None:
        choice, decided = search_several(tables, deadline)
    if choice is None:
        smallest = smallest_limits(tables, least, deadline) if decided else None
        return without_choice(problem, smallest, "hull", started)
    return answer(problem, fill(tables, choice), multipliers, "hull", started)


def relax(tables: ScaledTables) -> Relaxation:
    """Solve the linear relaxation of a feasible problem with one resource.

    The multiplier is the slope of the hull step on which the budget lands: among the minimisers of loss + multiplier * cost,
    the cheapest keep the limit and the dearest reach it. The first guess has float64's rounding; where that matters (many
    slopes all but equal) it is put right in exact arithmetic: take a vertex on either side of the limit, try the slope of
    the line between them, and replace one of the two by what it finds, until nothing lies below the line.
    """
    cost, limit = tables.cost[0], int(tables.limit[0])
    rows = np.arange(len(cost))
    steps = hull_steps(tables.loss, cost, tables.allowed)
    taken = int(np.searchsorted(steps.cost.cumsum(), limit - cost[rows, steps.start].sum(), side="right"))
    all_fit = taken == len(steps.cost)
    multiplier = Fraction(0) if all_fit else Fraction(int(steps.saved[taken]), int(steps.cost[taken]))
    below: tuple[int, int] | None = None  # (cost, loss) of a vertex within the limit
    above: tuple[int, int] | None = None  # and of one beyond it
    reach = Fraction(1, 2**40)
    while True:
        priced = priced_losses(tables, [multiplier.numerator], multiplier.denominator)
        least = np.asarray(priced == priced.min(axis=1, keepdims=True), dtype=np.bool_)
        cheapest = np.where(least, cost, np.iinfo(np.int64).max).argmin(axis=1)
        dearest = np.where(least, cost, -1).argmax(axis=1)
        if cost[rows, cheapest].sum() > limit:
            above = int(cost[rows, cheapest].sum()), int(tables.loss[rows, cheapest].sum())
        elif cost[rows, dearest].sum() < limit and multiplier > 0:
            below = int(cost[rows, dearest].sum()), int(tables.loss[rows, dearest].sum())
        else:
            vertex = steps.choice_after(taken)  # of several minimisers, those that use the limit best
            return Relaxation(vertex if least[rows, vertex].all() else cheapest, multiplier)
        if below and above:
            multiplier = Fraction(below[1] - above[1], above[0] - below[0])
        else:
            multiplier *= max(Fraction(0), 1 + reach if above else 1 - reach)
            reach *= 2**10


def fill(tables: ScaledTables, choice: Ints) -> Ints:
    """Spend what the limits leave: take the single move that saves most and fits, until none is left."""
    choice = choice.copy()
    rows = np.arange(len(choice))
    slack = tables.limit - tables.cost[:, rows, choice].sum(axis=1)
    while True:
        saved = tables.loss[rows, choice][:, None] - tables.loss
        more = tables.cost - tables.cost[:, rows, choice][:, :, None]
        fits = tables.allowed & (more <= slack[:, None, None]).all(axis=0)
        saved = np.where(fits, saved, 0)
        best = int(saved.argmax())
        item, option = divmod(best, saved.shape[1])
        if saved[item, option] <= 0:
            return choice
        slack = slack - more[:, item, option]
        choice[item] = option
