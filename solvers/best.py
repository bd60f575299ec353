"""Which solver for which problem: the strongest that fits its structure and size."""

from __future__ import annotations

import time
from dataclasses import replace

from . import core, dp, lagrangian, milp
from .problem import ChoiceProblem, Solution, Status

PAIRS_FOR_SEARCH = 20_000  # items times options: more, and branch and bound takes minutes
SHARE_FOR_LISTS = 0.25  # of the time limit; the rest is for branch and bound
NODES = 20_000  # of the search tree: a minute or so, and a count, so that the answer is always the same
STATES = 2**15  # in a list: more, and branch and bound is faster


def solve(problem: ChoiceProblem, *, time_limit: float | None = None, warm: core.Warm | None = None) -> Solution:
    """The strongest that fits the problem: `core` for one limit, else `dp`, `milp` or `lagrangian`, by rules and size.

    `warm`: see `core.solve`. `Solution.solver` is the one whose answer it is, `Solution.reason` why.
    """
    started = time.perf_counter()
    if problem.plain:
        exact = core.solve(problem, time_limit=time_limit, warm=warm)
        return replace(exact, reason="one limit and no rules: exact by a minimal core")
    pairs = int(problem.allowed.sum())
    size = f"{problem.resources} resources, {len(problem.rules)} rules and {pairs} pairs of item and option"
    if pairs > PAIRS_FOR_SEARCH:
        solution = lagrangian.solve(problem, time_limit=time_limit)
        return replace(solution, reason=f"{size}: too many for an exact search, near by relaxation")
    exact = dp.solve(problem, time_limit=None if time_limit is None else SHARE_FOR_LISTS * time_limit, states=STATES)
    if exact.status is not Status.LIMIT:
        return replace(exact, reason=f"{size}: exact by lists of undominated states")
    left = None if time_limit is None else max(0.0, time_limit - (time.perf_counter() - started))
    found = milp.solve(problem, time_limit=left, nodes=NODES)
    if found.choice is None or (exact.choice is not None and exact.loss <= found.loss):
        return replace(exact, reason=f"{size}: the lists were cut short, and HiGHS found nothing better")
    return replace(found, reason=f"{size}: too many states for exact lists. {found.reason}")
