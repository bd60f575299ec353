"""Exact for any rows: dynamic programming over all items, with lists of undominated states.

A *state* is what the items looked at so far add up to: the total of each row, and the loss. Totals are exact, so no grid has
to be chosen; of states alike in what they leave open, the one that loses least stays (Bellman 1957; lists after Nemhauser and
Ullmann 1969). With one limit, a state is dropped when another costs no more and loses no more; with several rows, the same
is asked of every row, and of a row bounded on both sides that the totals be equal. A state is dropped as well when no
completion keeps the bounds, or none can lose less than the best choice known, by the bound of the multipliers.

`core.py` does the same for one limit and touches few of the items; this one takes rules, floors and several resources.
"""

from __future__ import annotations

import math
import time

import numpy as np

from .arrays import Bools, Floats, Ints
from .certificate import ScaledTables, answer, lower_bound, scaled
from .hull import fill
from .hull import relax as relax_plain
from .infeasible import no_choice
from .lagrangian import near_choice, relax
from .layers import Layer, trace
from .problem import ChoiceProblem, Solution, least_costs, without_choice
from .rows import FREE

STATES = 2**21  # kept after one item; more, and the search gives up
SMALL = 100  # pairs of item and option: as soon searched as begun well
STATES_IN_ALL = 2**24  # kept for tracing back, 8 bytes each
PAIRWISE = 4096  # states compared each with each; of more, each is compared with this many of the most promising
SAFE = 1e-12  # relative allowance in bounds: thousands of times the rounding of the few operations behind them


def solve(problem: ChoiceProblem, *, time_limit: float | None = None, states: int = STATES) -> Solution:
    """Exact dynamic programming with dominance lists, for any rows and rules: the choice of least loss, proven.

    OPTIMAL, or INFEASIBLE, unless `time_limit` (seconds) or the room for `states`, after one item, ends the search first:
    then LIMIT, with the best choice found, where one was.
    """
    started = time.perf_counter()
    deadline = math.inf if time_limit is None else started + time_limit
    tables = scaled(problem)
    if problem.plain:
        least = least_costs(problem)
        if least[0] > problem.limit[0]:
            return without_choice(problem, least, "dp", started, ("the limit of resource 0",))
        relaxation = relax_plain(tables)
        multipliers = [relaxation.multiplier]
        known: Ints | None = fill(tables, relaxation.choice)
    else:
        dual = relax(tables, deadline)
        multipliers, known = dual.multipliers, None
        if int(tables.allowed.sum()) > SMALL:
            known, _ = near_choice(tables, dual, deadline)
    prices = [float(multiplier) for multiplier in multipliers]
    choice, complete = search(tables, prices, float(lower_bound(tables, multipliers)), known, deadline, states)
    if choice is None:
        return no_choice(problem, tables, complete, "dp", started, deadline)
    return answer(problem, choice, multipliers, "dp", started, searched=complete, stopped=not complete, tables=tables)


def search(
    tables: ScaledTables, prices: list[float], bound: float, known: Ints | None, deadline: float, states: int = STATES
) -> tuple[Ints | None, bool]:
    """The best choice (n,), `known` if none loses less, and whether that is proven; None where there is none.

    `prices` (one a row) and `bound`, what they prove, serve to drop states only.
    """
    rows = tables.rows
    items = np.arange(len(tables.loss))
    best = None if known is None else int(tables.loss[items, known].sum())
    reduced = rows.priced(tables.loss.astype(np.float64), prices)
    reduced[~tables.allowed] = np.inf
    reduced -= reduced.min(axis=1, keepdims=True)
    magnitude = SAFE * (float(tables.loss.max()) * len(items) + abs(bound))
    table = _needed(tables)
    lowest = np.where(tables.allowed, table, FREE // len(items)).min(axis=2)
    highest = np.where(tables.allowed, table, -FREE // len(items)).max(axis=2)
    room = math.inf if best is None else best - 1 - bound + magnitude
    # The items with the most to lose first: what they rule out is ruled out early.
    order = np.argsort(-np.where(np.isfinite(reduced), reduced, 0).max(axis=1), kind="stable")
    lowest_after = np.cumsum(lowest[:, order[::-1]], axis=1)[:, ::-1]
    highest_after = np.cumsum(highest[:, order[::-1]], axis=1)[:, ::-1]
    lowest_after = np.hstack([lowest_after, np.zeros((len(rows), 1), dtype=np.int64)])
    highest_after = np.hstack([highest_after, np.zeros((len(rows), 1), dtype=np.int64)])
    totals, lost, above = np.zeros((len(rows), 1), dtype=np.int64), np.zeros(1, dtype=np.int64), np.zeros(1)
    layers: list[Layer] = []
    kept_in_all = 0
    for place, item in enumerate(order.tolist()):
        options = np.flatnonzero(tables.allowed[item] & (reduced[item] <= room))
        before = lost.size
        if time.perf_counter() >= deadline or before * len(options) > 8 * states or kept_in_all > STATES_IN_ALL:
            return known, False
        above_next = np.add.outer(reduced[item, options], above).ravel()
        totals_next = (table[:, item, options][:, :, None] + totals[:, None, :]).reshape(len(rows), -1)
        fits = (totals_next + lowest_after[:, place + 1, None] <= rows.most[:, None]).all(axis=0)
        fits &= (totals_next + highest_after[:, place + 1, None] >= rows.least[:, None]).all(axis=0)
        origin = np.flatnonzero(fits & (above_next <= room))
        totals, above = totals_next[:, origin], above_next[origin]
        lost = np.add.outer(tables.loss[item, options], lost).ravel()[origin]
        # What every completion keeps is no matter any more: states differ only in rows that can still break.
        open_above = totals.max(axis=1, initial=-FREE) + highest_after[:, place + 1] > rows.most
        open_below = totals.min(axis=1, initial=FREE) + lowest_after[:, place + 1] < rows.least
        kept = _undominated(totals, lost, above, open_above, open_below)
        origin, totals, lost, above = origin[kept], totals[:, kept], lost[kept], above[kept]
        layers.append(Layer(item, options, before, origin))
        kept_in_all += len(origin)
        if not len(origin):
            return known, True
        if len(origin) > states:
            return known, False
    found = int(lost.argmin())
    return trace(layers, found, np.zeros(len(items), dtype=np.int64)), True


def _needed(tables: ScaledTables) -> Ints:
    """All rows as one table (q, n, m)."""
    return np.array([tables.rows.table(row) for row in range(len(tables.rows))])


def _undominated(totals: Ints, lost: Ints, above: Floats, open_above: Bools, open_below: Bools) -> Ints:
    """Indices of the states that no other dominates: no worse in any row that is still open, and in loss.

    A row open on one side only should be low (open above) or high (open below); one open on both must be equal.
    """
    both, up, down = open_above & open_below, open_above & ~open_below, open_below & ~open_above
    keys = totals[both]
    costs = np.vstack([totals[up], -totals[down]])
    order = np.lexsort((lost, *costs[::-1], *keys[::-1]))
    if not len(order):
        return order
    keys, costs, lost_ = keys[:, order], costs[:, order], lost[order]
    starts = np.ones(len(order), dtype=np.bool_)
    starts[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    group = np.cumsum(starts)
    # Ranks, so that one running minimum serves all groups: each group lies below the ones before it.
    rank = np.unique(lost_, return_inverse=True)[1]
    stacked = rank - group * (len(order) + 1)
    kept = np.ones(len(order), dtype=np.bool_)
    if len(costs) <= 1:
        kept[1:] = stacked[1:] < np.minimum.accumulate(stacked)[:-1]
        return order[kept]
    same = ~starts
    same[1:] &= (costs[:, 1:] == costs[:, :-1]).all(axis=0)
    kept &= ~same  # of states equal in all rows the first loses least
    survivors = np.flatnonzero(kept)
    judges = survivors
    if len(survivors) > PAIRWISE:
        judges = survivors[np.argsort(above[order[survivors]], kind="stable")[: PAIRWISE // 8]]
    dominated = np.zeros(len(survivors), dtype=np.bool_)
    for judge in judges.tolist():
        worse = (group[survivors] == group[judge]) & (lost_[survivors] >= lost_[judge]) & (survivors != judge)
        dominated |= worse & (costs[:, survivors] >= costs[:, judge, None]).all(axis=0)
    return order[survivors[~dominated]]
