"""The exact Pareto front of one resource: for every budget the least loss of all choices, on the convex hull or off it.

Lists of undominated states (cost, loss), item after item (Nemhauser and Ullmann 1969). The front of `frontier.py` is the
lower hull of this one and has at most one vertex for each option; this one can be as long as there are budgets, so it is for
problems of moderate size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .arrays import Floats, Ints
from .certificate import scaled
from .layers import Layer, trace
from .problem import ChoiceProblem

MOST_POINTS = 2**23  # 8 bytes each


@dataclass(frozen=True, eq=False)
class ParetoFront:
    """Point k costs `budgets[k]`, rising, and loses `losses[k]`, falling; both (k,). No choice costs as little and loses less.

    `layers` leads from a point to its choice; see `choice`.
    """

    budgets: Ints
    losses: Floats
    layers: tuple[Layer, ...]

    def lookup(self, limit: int) -> int:
        """Index of the best point within `limit`. Raises ValueError, saying the least cost, when there is none."""
        point = int(np.searchsorted(self.budgets, limit, side="right")) - 1
        if point < 0:
            raise ValueError(f"a limit of {limit} is below the least total cost, {int(self.budgets[0])}")
        return point

    def choice(self, point: int) -> Ints:
        """The choice (n,) at a point."""
        return trace(self.layers, range(len(self.budgets))[point], np.zeros(len(self.layers), dtype=np.int64))


def pareto(problem: ChoiceProblem, *, most_points: int = MOST_POINTS) -> ParetoFront:
    """Every (cost, loss) that no choice beats; the problem's own limit plays no part.

    Losses are compared as the integers of `certificate.scaled`, costs as they are, so the front is exact. Time grows with
    the points of all the items' lists, times the options; O(n m B) for budgets of at most B units.

    Raises ValueError when there is more than one resource, a floor or a rule, or the lists hold more than `most_points`
    points in all.
    """
    if not problem.plain:
        raise ValueError("a Pareto front is drawn where nothing but one limit constrains the choice; leave out floor and rules")
    tables = scaled(problem)
    cost = tables.cost[0]
    # The items with the coarsest costs first: their sums coincide most, which keeps the lists short longest.
    steps = cost - np.where(tables.allowed, cost, np.iinfo(np.int64).max).min(axis=1, keepdims=True)
    coarseness = np.gcd.reduce(np.where(tables.allowed, steps, 0), axis=1)
    order = np.argsort(-coarseness, kind="stable")
    spent = lost = np.zeros(1, dtype=np.int64)
    layers: list[Layer] = []
    points = 0
    for item in order.tolist():
        options = np.flatnonzero(tables.allowed[item])
        before = len(spent)
        if before * len(options) > 8 * most_points:
            raise _too_long(most_points, len(layers), problem.items)
        spent = np.add.outer(cost[item, options], spent).ravel()
        lost = np.add.outer(tables.loss[item, options], lost).ravel()
        origin = np.lexsort((lost, spent))
        falling = lost[origin]
        kept = np.ones(len(origin), dtype=np.bool_)
        kept[1:] = falling[1:] < np.minimum.accumulate(falling)[:-1]
        origin = origin[kept]
        spent, lost = spent[origin], lost[origin]
        points += len(origin)
        if points > most_points:
            raise _too_long(most_points, len(layers), problem.items)
        layers.append(Layer(item, options, before, origin))
    return ParetoFront(spent, lost / tables.scale, tuple(layers))


def _too_long(most_points: int, looked_at: int, items: int) -> ValueError:
    return ValueError(
        f"the Pareto front has more than {most_points} points to keep after {looked_at} of {items} items; "
        "use `frontier` for its convex hull, or round the costs to a larger unit"
    )
