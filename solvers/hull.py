"""Solve on the convex hull: the linear relaxation, its multipliers, and a good choice beside it.

The relaxation is solved by taking hull steps (`frontier.hull_steps`) until the next does not fit. The slope of that step is
the multiplier, exactly; the choice before it, filled up with whatever single moves still fit, is the answer, and loses less
than one step more than the lower bound. For several resources, and rules, see `lagrangian.py`.

Optimal by luck only (when the gap is zero), but fast and always certified.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .arrays import Bools, Ints
from .certificate import ScaledTables, answer, minimisers, scaled
from .frontier import HullSteps, hull_steps
from .problem import ChoiceProblem, Solution, check_plain, least_costs, without_choice


@dataclass(frozen=True, eq=False)
class Relaxation:
    """The linear relaxation of a problem with one resource, solved exactly.

    `choice` (n,) keeps the limit, and each of its options minimises loss + multiplier * cost, exactly. The lower bound is
    its loss less multiplier * (what it leaves of the limit); no other multiplier gives a greater one. `least` (n, m) marks
    all options that minimise it.
    """

    choice: Ints
    multiplier: Fraction
    least: Bools


def solve(problem: ChoiceProblem, *, time_limit: float | None = None) -> Solution:
    """A choice near the optimum with the best bound that multipliers can give, for one limit and nothing else.

    It takes milliseconds and ignores `time_limit`. Raises ValueError when there are several resources, or rules.
    """
    started = time.perf_counter()
    check_plain(problem, "hull")
    least = least_costs(problem)
    if least[0] > problem.limit[0]:
        return without_choice(problem, least, "hull", started, ("the limit of resource 0",))
    tables = scaled(problem)
    relaxation = relax(tables)
    choice = fill(tables, relaxation.choice)
    return answer(problem, choice, [relaxation.multiplier], "hull", started, tables=tables, least=relaxation.least)


def relax(tables: ScaledTables, steps: HullSteps | None = None) -> Relaxation:
    """Solve the linear relaxation of a feasible problem with one resource; `steps` are those of the tables, if at hand.

    The multiplier is the slope of the hull step on which the budget lands: among the minimisers of loss + multiplier * cost,
    the cheapest keep the limit and the dearest reach it. The first guess has float64's rounding; where that matters (many
    slopes all but equal) it is put right in exact arithmetic: take a vertex on either side of the limit, try the slope of
    the line between them, and replace one of the two by what it finds, until nothing lies below the line.
    """
    cost, limit = tables.cost[0], int(tables.limit[0])
    rows = np.arange(len(cost))
    steps = steps or hull_steps(tables.loss, cost, tables.allowed)
    taken = int(np.searchsorted(steps.cost.cumsum(), limit - cost[rows, steps.start].sum(), side="right"))
    all_fit = taken == len(steps.cost)
    multiplier = Fraction(0) if all_fit else Fraction(int(steps.saved[taken]), int(steps.cost[taken]))
    below: tuple[int, int] | None = None  # (cost, loss) of a vertex within the limit
    above: tuple[int, int] | None = None  # and of one beyond it
    reach = Fraction(1, 2**40)
    while True:
        least = minimisers(tables, [multiplier])
        cheapest = np.where(least, cost, np.iinfo(np.int64).max).argmin(axis=1)
        dearest = np.where(least, cost, -1).argmax(axis=1)
        if cost[rows, cheapest].sum() > limit:
            above = int(cost[rows, cheapest].sum()), int(tables.loss[rows, cheapest].sum())
        elif cost[rows, dearest].sum() < limit and multiplier > 0:
            below = int(cost[rows, dearest].sum()), int(tables.loss[rows, dearest].sum())
        else:
            vertex = steps.choice_after(taken)  # of several minimisers, those that use the limit best
            return Relaxation(vertex if least[rows, vertex].all() else cheapest, multiplier, least)
        if below and above:
            multiplier = Fraction(below[1] - above[1], above[0] - below[0])
        else:
            multiplier *= max(Fraction(0), 1 + reach if above else 1 - reach)
            reach *= 2**10


def fill(tables: ScaledTables, choice: Ints) -> Ints:
    """Spend what the limit leaves: take the single move that saves most and fits, until none is left."""
    choice = choice.copy()
    cost, rows = tables.cost[0], np.arange(len(choice))
    slack = int(tables.limit[0] - cost[rows, choice].sum())
    saved = tables.loss[rows, choice][:, None] - tables.loss
    item, option = np.nonzero(tables.allowed & (saved > 0) & (cost - cost[rows, choice][:, None] <= slack))
    while len(item):
        saved_by = tables.loss[item, choice[item]] - tables.loss[item, option]
        more = cost[item, option] - cost[item, choice[item]]
        open_ = (saved_by > 0) & (more <= slack)
        if not open_.any():
            break
        best = int(np.where(open_, saved_by, -1).argmax())
        choice[item[best]] = option[best]
        slack -= int(more[best])
        # A move of a moved item may fit again later, from where it then stands; those of others only shut.
        kept = open_ | (item == item[best])
        item, option = item[kept], option[kept]
    return choice
