"""The frontier of one resource: the best loss for every budget on the lower convex hull (Shoham and Gersho 1988).

Each item has its own hull of (cost, loss) points; going down it, the loss saved for each unit of cost (the *slope*)
falls. Taking the steps of all items in the order of falling slope visits every vertex of the hull of all n-fold
choices, from the cheapest choice to the one of least loss, for every budget at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .certificate import scaled
from .problem import Bools, ChoiceProblem, Floats, Ints


@dataclass(frozen=True, eq=False)
class HullSteps:
    """`start` (n,): the cheapest option of each item. Step k moves `item[k]` to `option[k]`, which costs `cost[k]` more
    and saves `saved[k]` of (integer) loss; `slope` = saved / cost, falling; all (k,).
    """

    start: Ints
    item: Ints
    option: Ints
    cost: Ints
    saved: Ints
    slope: Floats

    def choice_after(self, steps: int) -> Ints:
        """The choice (n,) after that many steps: of each item, the option it was moved to last."""
        choice = self.start.copy()
        choice[self.item[:steps]] = self.option[:steps]  # on repeated items, numpy keeps the last
        return choice


@dataclass(frozen=True, eq=False)
class Frontier:
    """Vertex k costs `budgets[k]`, rising, and loses `losses[k]`, falling; all (k,).

    `multipliers[k]` is the shadow price there: the loss that the next unit of cost saves, on the way to vertex k + 1;
    zero at the last. Between vertices the straight line is a lower bound for the best loss.
    """

    budgets: Ints
    losses: Floats
    multipliers: Floats
    steps: HullSteps

    def lookup(self, limit: int) -> int:
        """Index of the last vertex within `limit`. Raises ValueError, saying the least cost, when there is none."""
        vertex = int(np.searchsorted(self.budgets, limit, side="right")) - 1
        if vertex < 0:
            raise ValueError(f"a limit of {limit} is below the least total cost, {int(self.budgets[0])}")
        return vertex

    def choice(self, vertex: int) -> Ints:
        """The choice (n,) at a vertex."""
        return self.steps.choice_after(range(len(self.budgets))[vertex])


def frontier(problem: ChoiceProblem) -> Frontier:
    """Every vertex of the lower hull, from the cheapest choice to the least loss; the problem's own limit plays no part.

    Raises ValueError when there is more than one resource.
    """
    if problem.resources != 1:
        raise ValueError(f"a frontier is drawn over one resource, and this problem has {problem.resources}")
    tables = scaled(problem)
    steps = hull_steps(tables.loss, tables.cost[0], tables.allowed)
    rows = np.arange(problem.items)
    budgets = np.append(tables.cost[0, rows, steps.start].sum(), steps.cost).cumsum()
    losses = np.append(tables.loss[rows, steps.start].sum(), -steps.saved).cumsum() / tables.scale
    return Frontier(budgets, losses, np.append(steps.slope / tables.scale, 0.0), steps)


def hull_steps(loss: Ints, cost: Ints, allowed: Bools) -> HullSteps:
    """The steps of all items along their lower hulls, by falling slope; tables (n, m).

    Gift wrapping: from where an item stands, its next hull point is the option with the largest slope (the nearest of
    equals, so that points on an edge count), and at most m - 1 rounds over the table find all. Slopes are float64: an
    option within rounding of an edge may be missed or kept, which a user must bear (`hull.exact_multiplier` does).
    """
    items = len(loss)
    largest = np.iinfo(np.int64).max
    rows = np.arange(items)
    least = np.where(allowed, cost, largest).min(axis=1, keepdims=True)
    start = np.where(allowed & (cost == least), loss, largest).argmin(axis=1)
    at, bar = start, np.full(items, np.inf)
    found: list[tuple[Ints, Ints, Ints, Ints, Floats]] = []
    while len(rows):
        more = cost[rows] - cost[rows, at][:, None]
        saved = loss[rows, at][:, None] - loss[rows]
        ahead = allowed[rows] & (more > 0) & (saved > 0)
        slope = np.divide(saved, more, out=np.zeros(more.shape), where=ahead)
        steepest = slope.max(axis=1)
        to = np.where(ahead & (slope == steepest[:, None]), more, largest).argmin(axis=1)
        on = np.flatnonzero(steepest > 0)
        # A slope that rounding lifts above the one before it would let an item take its steps in the wrong order.
        bar = np.minimum(bar, steepest)[on]
        rows, to = rows[on], to[on]
        found.append((rows, to, more[on, to], saved[on, to], bar))
        at = to
    item, option, step_cost, step_saved, slopes = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(-slopes, kind="stable")  # of equal slopes, an item's earlier step comes first
    return HullSteps(start, item[order], option[order], step_cost[order], step_saved[order], slopes[order])
