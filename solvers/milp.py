"""Branch and bound by HiGHS: any rows, any couplings, at the price of floating point (Land and Doig 1960; see `highs.py`)."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np

from . import hull, lagrangian
from .arrays import Ints
from .certificate import ScaledTables, answer, scaled
from .highs import least
from .infeasible import no_choice
from .problem import ChoiceProblem, Solution, least_costs


def solve(problem: ChoiceProblem, *, time_limit: float | None = None, nodes: int | None = None) -> Solution:
    """Mixed-integer programming by HiGHS: the least loss to within 1e-7 of the largest, for any rows and rules.

    The multipliers are the dual values of the linear relaxation. OPTIMAL only where they prove it: HiGHS's own word is good
    to its tolerances, and then the status is FEASIBLE and `reason` says so. LIMIT when `time_limit` (seconds) or
    `nodes` of the search tree cut the search short.
    """
    started = time.perf_counter()
    deadline = math.inf if time_limit is None else started + time_limit
    tables = scaled(problem)
    if problem.plain and least_costs(problem)[0] > problem.limit[0]:
        return no_choice(problem, tables, True, "milp", started, deadline)
    multipliers, known = start(problem, tables, deadline)
    found = least(tables.loss, tables, deadline, nodes=nodes)
    choice = better(tables, found.choice, known)
    if choice is None:
        return no_choice(problem, tables, found.done, "milp", started, deadline)
    solution = answer(problem, choice, multipliers, "milp", started, stopped=not found.done, tables=tables)
    return replace(solution, reason=f"HiGHS: {'optimal within its tolerances' if found.done else 'stopped before it was done'}")


def start(problem: ChoiceProblem, tables: ScaledTables, deadline: float) -> tuple[list[Fraction], Ints | None]:
    """Multipliers of the relaxation, and, for one limit that can be kept, a choice that a search may fall back on."""
    if problem.plain:
        relaxation = hull.relax(tables)
        return [relaxation.multiplier], hull.fill(tables, relaxation.choice)
    return lagrangian.relax(tables, deadline).multipliers, None


def better(tables: ScaledTables, *choices: Ints | None) -> Ints | None:
    """The choice of least loss, the first of equals; None where there is none."""
    items = np.arange(len(tables.loss))
    known = [choice for choice in choices if choice is not None]
    return min(known, key=lambda choice: int(tables.loss[items, choice].sum()), default=None)
