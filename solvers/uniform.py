"""The rival that every plan must beat: one format everywhere, or two neighbouring ones filled in layer order.

A column j of the tables is a *single format* when every item may take option j; an item with only one allowed option
(pinned) keeps that instead. Columns are compared by their totals, as a person does who weighs "int3 everywhere" against
"int4 everywhere"; no item is treated by its own losses.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import lagrangian
from .arrays import Ints
from .certificate import ScaledTables, answer, scaled
from .frontier import hull_steps
from .hull import relax
from .problem import ChoiceProblem, Solution, least_costs, without_choice


def solve(problem: ChoiceProblem, *, time_limit: float | None = None) -> Solution:
    """Uniform plan: the better of the best single format that fits and two neighbouring formats filled in layer order.

    The certificate's multipliers are those of the relaxation, so its gap says how much a better plan could save; OPTIMAL
    when that is nothing. Where no single format fits: for one limit the cheapest option of each item; for several
    resources, and rules, LIMIT and no choice. `time_limit` is for the relaxation.
    """
    started = time.perf_counter()
    tables = scaled(problem)
    if problem.plain:
        least = least_costs(problem)
        if least[0] > problem.limit[0]:
            return without_choice(problem, least, "uniform", started, ("the limit of resource 0",))
        multipliers = [relax(tables).multiplier]
    else:
        deadline = math.inf if time_limit is None else started + time_limit
        multipliers = lagrangian.relax(tables, deadline).multipliers
    tried = [choice for choice in (single_format(problem), layer_order_fill(problem)) if choice is not None]
    rivals = [choice for choice in tried if not tables.rows.broken(choice)]
    if not rivals:
        if not problem.plain:
            return without_choice(problem, None, "uniform", started)
        rivals = [hull_steps(tables.loss, tables.cost[0], tables.allowed).start]
    rows = np.arange(problem.items)
    best = min(rivals, key=lambda choice: int(tables.loss[rows, choice].sum()))
    return answer(problem, best, multipliers, "uniform", started, tables=tables)


def single_format(problem: ChoiceProblem) -> Ints | None:
    """The choice (n,) of the single format with the least total loss that keeps the limits; None where none does."""
    columns = _Columns.of(scaled(problem))
    best = columns.best()
    return None if best is None else columns.choice(best)


def layer_order_fill(problem: ChoiceProblem) -> Ints | None:
    """Two neighbouring formats: the best single format that fits, and the next costlier one that loses less.

    Every item starts with the former; in item order, each whose latter still fits is raised to it. None where either
    format does not exist. With several resources, the costlier is the one nearest to fitting.
    """
    tables = scaled(problem)
    columns = _Columns.of(tables)
    low = columns.best()
    if low is None or not np.any(columns.loss < columns.loss[low]):
        return None
    better = np.flatnonzero(columns.loss < columns.loss[low])
    high = better[columns.tightness[better].argmin()]
    choice = columns.choice(low)
    slack = [int(left) for left in tables.limit - columns.cost[low]]
    rows = np.arange(problem.items)
    more = (tables.cost[:, rows, columns.choices[high]] - tables.cost[:, rows, choice]).T.tolist()
    for item, steps in enumerate(more):
        after = [left - step for left, step in zip(slack, steps, strict=True)]
        if min(after) >= 0:
            choice[item], slack = columns.choices[high, item], after
    return choice


@dataclass(frozen=True, eq=False)
class _Columns:
    """The single formats: `choices` (k, n), with their totals `loss` (k,) and `cost` (k, r).

    `tightness` (k,) is the largest ratio of a total cost to its limit; a column fits where no cost exceeds its limit.
    """

    choices: Ints
    loss: Ints
    cost: Ints
    tightness: npt.NDArray[np.float64]
    fits: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, tables: ScaledTables) -> _Columns:
        allowed, rows = tables.allowed, np.arange(len(tables.allowed))
        pinned = allowed.sum(axis=1) == 1
        single = np.flatnonzero((allowed | pinned[:, None]).all(axis=0))
        choices = np.where(pinned, allowed.argmax(axis=1), single[:, None])
        cost = tables.cost[:, rows, choices].sum(axis=2).T
        tightness = (cost / np.maximum(tables.limit, 1)).max(axis=1)
        return cls(choices, tables.loss[rows, choices].sum(axis=1), cost, tightness, (cost <= tables.limit).all(axis=1))

    def choice(self, column: int) -> Ints:
        return np.array(self.choices[column])

    def best(self) -> int | None:
        """The fitting column of least loss, of equals the least tight."""
        fitting = np.flatnonzero(self.fits)
        if not len(fitting):
            return None
        return int(fitting[np.lexsort((self.tightness[fitting], self.loss[fitting]))[0]])
