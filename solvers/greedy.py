"""Marginal-gain greedy: what most tools do, exact where steps cost the same and losses are convex, a rival elsewhere.

Every item starts at its cheapest option. Of all items' steps to their *next better option*, the next one up in cost that loses
less, the one that saves most loss a unit of cost is taken, as long as it fits; a step that does not fit makes way for the one
beyond it. Unlike the steps of `hull`, these stop at options off the convex hull, and what a steep step behind a flat one would
save is seen too late.

With several resources, costs are told as the sum of their shares in the limits.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from . import hull, lagrangian
from .arrays import Floats, Ints
from .certificate import ScaledTables, answer, scaled
from .highs import Found, least
from .infeasible import no_choice
from .problem import ChoiceProblem, Solution

DIGITS = 2**40  # shares in limits as whole numbers, for the integer programme


def solve(problem: ChoiceProblem, *, time_limit: float | None = None) -> Solution:
    """Marginal-gain greedy: the step that saves most for its cost, again and again; for limits alone, several if need be.

    Optimal when all steps cost the same and each item's losses are convex (Fox 1966). The multipliers are those of
    `hull` or, with several resources, of `lagrangian`; `time_limit` bounds the work for the latter, and for a start where the
    cheapest options break a limit. Raises ValueError when there are floors or rules.
    """
    started = time.perf_counter()
    deadline = math.inf if time_limit is None else started + time_limit
    check_limits_only(problem, "greedy")
    tables = scaled(problem)
    start = cheapest_choice(tables, deadline)
    if start.choice is None:
        return no_choice(problem, tables, start.done, "greedy", started, deadline)
    multipliers = multipliers_of(problem, tables, deadline)
    return answer(problem, climb(tables, start.choice), multipliers, "greedy", started, tables=tables)


def climb(tables: ScaledTables, start: Ints) -> Ints:
    """The choice (n,) that greed makes of `start` (n,), which keeps the limits."""
    choice = start.copy()
    slack = (tables.limit - tables.cost[:, np.arange(len(start)), start].sum(axis=1)).tolist()
    size = sizes_of(tables)
    sizes, losses = size.tolist(), tables.loss.tolist()
    costs = tables.cost.transpose(1, 2, 0).tolist()
    ahead = [iter(options) for options in _by_size(tables)]
    steps: list[tuple[float, int, int, int]] = []  # (-slope, -saved, item, option); of equal slopes the greater step

    def push(item: int) -> None:
        at = int(choice[item])
        for option in ahead[item]:
            saved = losses[item][at] - losses[item][option]
            if saved > 0:
                more = sizes[item][option] - sizes[item][at]
                heapq.heappush(steps, (-saved / more if more > 0 else -math.inf, -saved, item, option))
                return

    for item in range(len(choice)):
        push(item)
    while steps:
        _, _, item, option = heapq.heappop(steps)
        at = int(choice[item])
        left = [have - after + now for have, after, now in zip(slack, costs[item][option], costs[item][at], strict=True)]
        if min(left) >= 0:
            choice[item], slack = option, left
        push(item)
    return choice


def _by_size(tables: ScaledTables) -> Iterator[list[int]]:
    """For each item its allowed options, by rising size, of equals the one that loses least first."""
    order = np.lexsort((tables.loss, sizes_of(tables), ~tables.allowed), axis=1)
    for options, allowed in zip(order.tolist(), tables.allowed.sum(axis=1).tolist(), strict=True):
        yield options[:allowed]


def sizes_of(tables: ScaledTables) -> Ints | Floats:
    """The size (n, m) of each option: its cost or, with several resources, the sum of its shares in their limits."""
    sizes: Ints | Floats = tables.cost[0]
    if len(tables.limit) == 1:
        return sizes
    return np.asarray((tables.cost / np.maximum(tables.limit, 1)[:, None, None]).sum(axis=0))


def cheapest_choice(tables: ScaledTables, deadline: float) -> Found:
    """The smallest option of each item, of equals the one that loses least; where that breaks a limit, what HiGHS finds.

    `done` with no choice says that no choice keeps the limits.
    """
    choice = np.array([options[0] for options in _by_size(tables)])
    if not tables.rows.broken(choice):
        return Found(choice, True)
    if len(tables.limit) == 1:
        return Found(None, True)
    sizes = sizes_of(tables).astype(np.float64)
    return least(np.rint(sizes / max(float(sizes.max()), 1e-300) * DIGITS).astype(np.int64), tables, deadline)


def multipliers_of(problem: ChoiceProblem, tables: ScaledTables, deadline: float) -> list[Fraction]:
    """The multipliers of the relaxation of a problem that is feasible: what every plan, however made, is measured by."""
    if problem.plain:
        return [hull.relax(tables).multiplier]
    return lagrangian.relax(tables, deadline).multipliers


def check_limits_only(problem: ChoiceProblem, solver: str) -> None:
    """Raises ValueError, for a solver that knows limits and nothing else, when the problem has more."""
    found = ["a floor"] * bool(problem.floor.any()) + [f"{len(problem.rules)} rules"] * bool(problem.rules)
    if found:
        raise ValueError(f"{solver} solves problems with limits and nothing else, not {', '.join(found)}; use `best`")
