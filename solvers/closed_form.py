"""The closed form as a solver: fit a law to each item, fill with water, round (see `water_filling.py`)."""

from __future__ import annotations

import time

import numpy as np

from .arrays import Floats, Ints
from .certificate import ScaledTables, answer, scaled
from .frontier import HullSteps, hull_steps
from .hull import fill, relax
from .problem import ChoiceProblem, Solution, check_plain, least_costs, without_choice
from .water_filling import ROUNDING, reverse_water_filling

ZERO = 2.0  # a loss of zero has no logarithm: it counts as so many halvings of the loss before it


def solve(problem: ChoiceProblem, *, time_limit: float | None = None) -> Solution:
    """Water-filling in closed form: each item's law loss = C 2^(-slope cost) is fitted, solved, and rounded to options.

    The law is fitted to each item's lower hull, by least squares of log2 loss, with a slope of its own: costs are bytes of
    matrices of all sizes. Each item takes the dearest hull option within its real-valued cost; the steps of the hulls,
    steepest first, spend what that leaves, and `hull.fill` the rest. A loss of zero counts as a quarter of the loss before
    it. The certificate's multiplier is that of the relaxation, so its gap says what the law misses.

    It takes milliseconds and ignores `time_limit`. Raises ValueError when there are several resources, or rules.
    """
    started = time.perf_counter()
    check_plain(problem, "closed_form")
    least = least_costs(problem)
    if least[0] > problem.limit[0]:
        return without_choice(problem, least, "closed_form", started, ("the limit of resource 0",))
    tables = scaled(problem)
    steps = hull_steps(tables.loss, tables.cost[0], tables.allowed)
    choice = _rounded(tables, steps) if len(steps.item) else steps.start
    return answer(problem, fill(tables, choice), [relax(tables).multiplier], "closed_form", started, tables=tables)


def _rounded(tables: ScaledTables, steps: HullSteps) -> Ints:
    """The choice (n,) that the fitted laws lead to, within the limit."""
    rows, cost = np.arange(len(tables.loss)), tables.cost[0]
    room = int(tables.limit[0] - cost[rows, steps.start].sum())
    more = cost[steps.item, steps.option] - cost[steps.item, steps.start[steps.item]]  # than the item's cheapest
    items, height, slope = _laws(tables, steps, more)
    span = np.zeros(len(rows))
    np.maximum.at(span, steps.item, more)
    filling = reverse_water_filling(np.exp2(height), 1 / slope, float(room), slope=1.0, cap=slope * span[items])
    reach = np.zeros(len(rows))
    reach[items] = filling.bits / slope * (1 + ROUNDING)
    taken = more <= reach[steps.item]
    over = int(steps.cost[taken].sum()) - room
    if over > 0:  # by rounding: give the last steps back
        last = np.flatnonzero(taken)[::-1]
        taken[last[: int(np.searchsorted(steps.cost[last].cumsum(), over)) + 1]] = False
    left = room - int(steps.cost[taken].sum())
    ahead = np.flatnonzero(~taken)
    taken[ahead[: int(np.searchsorted(steps.cost[ahead].cumsum(), left, side="right"))]] = True
    choice = steps.start.copy()
    choice[steps.item[taken]] = steps.option[taken]  # on repeated items, numpy keeps the last
    return choice


def _laws(tables: ScaledTables, steps: HullSteps, more: Ints) -> tuple[Ints, Floats, Floats]:
    """Items that have steps, and for each the line  log2 loss = height - slope * more  through its hull, by least squares."""
    items = np.unique(steps.item)
    item = np.append(items, steps.item)
    x = np.append(np.zeros(len(items)), more)
    loss = np.append(tables.loss[items, steps.start[items]], tables.loss[steps.item, steps.option]).astype(np.float64)
    before = loss[len(items) :] + steps.saved
    zero = np.append(np.zeros(len(items), dtype=np.bool_), loss[len(items) :] == 0)
    loss[zero] = before[zero[len(items) :]] * 2.0**-ZERO
    y = np.log2(loss)
    points = np.bincount(item)[items]
    mean_x, mean_y = (np.bincount(item, values)[items] / points for values in (x, y))
    place = np.searchsorted(items, item)
    apart_x, apart_y = x - mean_x[place], y - mean_y[place]
    slope = -np.bincount(place, apart_x * apart_y) / np.bincount(place, apart_x**2)
    return items, mean_y + slope * mean_x, slope
