"""The mean rival: chance spends the budget. What a plan is worth shows in how far it is ahead of this.

Every item starts at its cheapest option. Then, in a fresh random order each round, every item moves to one of its affordable
*upgrades*, drawn with equal probabilities from the options that cost more than the one it has, lose less, and still fit;
rounds follow until a whole one has changed nothing. So all of the budget that single upgrades can spend is spent, nobody is
made worse by an upgrade, and how much an upgrade saves plays no part.
"""

from __future__ import annotations

import math
import time

import numpy as np

from .arrays import Ints
from .certificate import ScaledTables, answer, scaled
from .greedy import cheapest_choice, check_limits_only, multipliers_of, sizes_of
from .infeasible import no_choice
from .problem import ChoiceProblem, Solution


def solve(problem: ChoiceProblem, *, time_limit: float | None = None, seed: int = 0, draws: int = 1) -> Solution:
    """Random affordable upgrades until nothing fits: the best of so many draws, for limits alone, several if need be.

    The same `seed` gives the same draws. LIMIT where `time_limit` came before the last draw; the first is always made.
    The multipliers are those of `hull` or, with several resources, of `lagrangian`. Raises ValueError when there are
    floors or rules, or no draws.
    """
    started = time.perf_counter()
    deadline = math.inf if time_limit is None else started + time_limit
    check_limits_only(problem, "random")
    if draws < 1:
        raise ValueError(f"random needs at least one draw, not {draws}")
    tables = scaled(problem)
    start = cheapest_choice(tables, deadline)
    if start.choice is None:
        return no_choice(problem, tables, start.done, "random", started, deadline)
    rng = np.random.default_rng(seed)
    best = draw(tables, start.choice, rng)
    made = 1
    while made < draws and time.perf_counter() < deadline:
        best = min(best, draw(tables, start.choice, rng), key=lambda choice: _loss(tables, choice))
        made += 1
    multipliers = multipliers_of(problem, tables, deadline)
    return answer(problem, best, multipliers, "random", started, stopped=made < draws, tables=tables)


def draw(tables: ScaledTables, start: Ints, rng: np.random.Generator) -> Ints:
    """One random choice (n,) from `start` (n,), which keeps the limits; see the top of this file."""
    choice, size = start.copy(), sizes_of(tables)
    slack = tables.limit - tables.cost[:, np.arange(len(start)), start].sum(axis=1)
    while True:
        moved = False
        for item in rng.permutation(len(choice)).tolist():
            at = choice[item]
            more = tables.cost[:, item] - tables.cost[:, item, at, None]
            upgrades = tables.allowed[item] & (size[item] > size[item, at]) & (tables.loss[item] < tables.loss[item, at])
            affordable = np.flatnonzero(upgrades & (more <= slack[:, None]).all(axis=0))
            if len(affordable):
                option = rng.choice(affordable)
                choice[item] = option
                slack = slack - more[:, option]
                moved = True
        if not moved:
            return choice


def _loss(tables: ScaledTables, choice: Ints) -> int:
    return int(tables.loss[np.arange(len(choice)), choice].sum())
