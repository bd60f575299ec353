"""Maximin: no item may suffer more than it must. First make the largest single loss as small as it can be, then the sum.

    tau* = min over choices x of  max_i loss[i, x_i]            then            min sum_i loss[i, x_i]  with all losses <= tau*

tau* is one of the losses in the table, and "there is a choice with all losses <= tau" can only turn true as tau rises: so
bisect (the bottleneck problem: Gross 1959; Edmonds and Fulkerson 1970). With one limit each test adds up the cheapest options
that are left; with more rows, HiGHS looks for any choice. Why tau* is not smaller is shown by prices (Farkas 1902):

    sum_i min over {j: loss[i, j] <= below} of sum_q y_q a[q, i, j]    >    sum_q y_q edge_q

says that no choice with all losses at or below `below`, the loss next below tau*, keeps the rows (`certificate.py` says which
edge a price means).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from . import best, dp
from .arrays import Floats, Ints
from .certificate import ScaledTables, answer, scaled
from .highs import Found, Programme, least
from .infeasible import no_choice
from .problem import ChoiceProblem, Proof, Solution, Status, least_costs, without_choice

SECONDS_FOR_LISTS = 5.0  # for an exact search where prices prove nothing
DENOMINATOR = 1000  # prices are tried as they come, in floating point, and rounded to such fractions of the largest


@dataclass(frozen=True)
class Threshold:
    """Why no choice has all its losses at or below `below`: `check_threshold` tells whether it is so.

    Either `item` has no option there, or `multipliers` (one a row) are prices as at the top of this file; neither where
    only a search says so. `below` is -infinity where the table has no smaller loss.
    """

    below: float
    item: int | None
    multipliers: tuple[Fraction, ...]


@dataclass(frozen=True, eq=False)
class WorstSolution:
    """A choice (n,) whose largest loss is `worst`, and whose sum is `loss`, the least among such choices.

    `proof` is that of the threshold: `multipliers` (it can be checked), `search` (exact lists of states found no choice) or
    `bound` (HiGHS found none within its tolerances, or time ran out: then losses between `threshold.below` and `worst` are
    undecided). `sums` is the answer of the second stage, with the certificate of the sum over the options up to `worst`, or
    the answer that there is no choice. `status` is OPTIMAL when both are proven.
    """

    choice: Ints | None
    worst: float
    loss: float
    cost: Ints
    status: Status
    proof: Proof
    threshold: Threshold | None
    sums: Solution
    seconds: float


def solve_worst(problem: ChoiceProblem, *, time_limit: float | None = None) -> WorstSolution:
    """The choice whose largest single loss is smallest and, among those, whose sum is least; for any rows and rules.

    INFEASIBLE, with `sums.smallest_limit`, when no choice keeps the rows; LIMIT when `time_limit` (seconds) cut the work
    short, with the best choice so far, where there is one. Losses are compared as they are, without rounding.
    """
    started = time.perf_counter()
    deadline = math.inf if time_limit is None else started + time_limit
    tables = scaled(problem)
    values = np.unique(problem.loss[problem.allowed])
    found = _within(problem, tables, float(values[-1]), deadline)
    if found.choice is None:
        return _without(_no_choice(problem, tables, found.done, started, deadline))
    known, high = found.choice, _worst(problem, values, found.choice)
    first = _smallest_imaginable(problem, values)
    while True:
        low, high, known = _bisect(problem, tables, values, known, (first, high), deadline)
        threshold, proof, refuted = _prove(problem, tables, -math.inf if low < 0 else float(values[low]), deadline)
        if refuted is None:
            break
        known, high = refuted, _worst(problem, values, refuted)  # HiGHS had missed a choice
    worst, decided = float(values[high]), high == low + 1
    open_ = problem.allowed & (problem.loss <= worst)
    restricted = replace(problem, allowed=open_)
    left = None if time_limit is None else max(0.0, deadline - time.perf_counter())
    sums = best.solve(restricted, time_limit=left)
    if sums.choice is None:
        sums = answer(restricted, known, [Fraction(0)] * len(tables.rows), sums.solver, started, stopped=True)
    status = sums.status
    if not decided:
        status, proof = Status.LIMIT, "bound"
    elif proof == "bound":
        status = Status.FEASIBLE
    seconds = time.perf_counter() - started
    return WorstSolution(sums.choice, worst, sums.loss, sums.cost, status, proof, threshold, sums, seconds)


def check_threshold(problem: ChoiceProblem, threshold: Threshold) -> bool:
    """Whether `threshold` proves that no choice has all its losses at or below `threshold.below`; exact, O(n m q).

    Raises ValueError when multipliers are missing or price a side that is not bounded.
    """
    open_ = problem.allowed & (problem.loss <= threshold.below)
    if threshold.item is not None:
        return not open_[threshold.item].any()
    if not any(threshold.multipliers) or not open_.any(axis=1).all():
        return False
    rows = problem.rows
    if len(threshold.multipliers) != len(rows):
        raise ValueError(f"a threshold needs {len(rows)} multipliers, one a row, not {list(threshold.multipliers)}")
    common = math.lcm(*(multiplier.denominator for multiplier in threshold.multipliers))
    prices = [int(multiplier * common) for multiplier in threshold.multipliers]
    edges = sum(price * edge for price, edge in zip(prices, rows.edges(threshold.multipliers), strict=True))
    nothing = np.zeros(problem.loss.shape, dtype=np.int64)
    priced = rows.priced_exactly(nothing, prices, common, np.arange(problem.items))
    priced[~open_] = priced.max() + 1
    return bool(priced.min(axis=1).sum() > edges)


def _smallest_imaginable(problem: ChoiceProblem, values: Floats) -> int:
    """The index before that of the largest of the items' least losses: some item has no option at or below it."""
    largest = np.where(problem.allowed, problem.loss, np.inf).min(axis=1).max()
    return int(np.searchsorted(values, largest)) - 1


def _worst(problem: ChoiceProblem, values: Floats, choice: Ints) -> int:
    """The index of a choice's largest loss."""
    return int(np.searchsorted(values, problem.loss[np.arange(problem.items), choice].max()))


def _bisect(
    problem: ChoiceProblem, tables: ScaledTables, values: Floats, known: Ints, ends: tuple[int, int], deadline: float
) -> tuple[int, int, Ints]:
    """Narrow the `ends` (no choice, a choice) of indices into `values` until they are neighbours, or time is up."""
    low, high = ends
    while high - low > 1:
        middle = (low + high) // 2
        found = _within(problem, tables, float(values[middle]), deadline)
        if found.choice is not None:
            known, high = found.choice, _worst(problem, values, found.choice)
        elif found.done:
            low = middle
        else:
            break
    return low, high, known


def _within(problem: ChoiceProblem, tables: ScaledTables, most: float, deadline: float) -> Found:
    """Any choice with all losses at or below `most` that keeps the rows."""
    open_ = problem.allowed & (problem.loss <= most)
    if not open_.any(axis=1).all():
        return Found(None, True)
    if problem.plain:
        cost = problem.cost[0]
        choice = np.where(open_, cost, np.iinfo(np.int64).max).argmin(axis=1)
        fits = cost[np.arange(problem.items), choice].sum() <= problem.limit[0]
        return Found(choice if fits else None, True)
    return least(np.zeros_like(tables.loss), replace(tables, allowed=open_), deadline)


def _prove(problem: ChoiceProblem, tables: ScaledTables, below: float, deadline: float) -> tuple[Threshold, Proof, Ints | None]:
    """Why no choice has all losses at or below `below`, and the kind of proof; or a choice that has, if there is one."""
    open_ = problem.allowed & (problem.loss <= below)
    empty = np.flatnonzero(~open_.any(axis=1))
    if len(empty):
        return Threshold(below, int(empty[0]), ()), "multipliers", None
    if problem.plain:
        return Threshold(below, None, (Fraction(1),)), "multipliers", None
    bare = replace(tables, allowed=open_, loss=np.zeros_like(tables.loss))
    for multipliers in _farkas(bare, deadline):
        threshold = Threshold(below, None, multipliers)
        if check_threshold(problem, threshold):
            return threshold, "multipliers", None
    until = min(deadline, time.perf_counter() + SECONDS_FOR_LISTS)
    refuted, complete = dp.search(bare, [0.0] * len(tables.rows), 0.0, None, until, dp.STATES)
    return Threshold(below, None, ()), "search" if complete else "bound", refuted


def _farkas(tables: ScaledTables, deadline: float) -> list[tuple[Fraction, ...]]:
    """Prices that may prove that no mix of choices keeps the rows: the duals of the least sum of broken bounds."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, eye_array, hstack, vstack

    if time.perf_counter() >= deadline:
        return []
    programme = Programme.of(tables)
    upper, lower = np.isfinite(programme.most), np.isfinite(programme.least)
    sides = vstack([programme.rows[upper], -programme.rows[lower]], format="csr")
    count, pairs = sides.shape
    result = linprog(
        np.append(np.zeros(pairs), np.ones(count)),
        A_ub=hstack([sides, -eye_array(count)], format="csr"),
        b_ub=np.append(programme.most[upper], -programme.least[lower]),
        A_eq=hstack([programme.one_each, csr_array((len(tables.loss), count))], format="csr"),
        b_eq=np.ones(len(tables.loss)),
        method="highs",
        options={} if deadline == math.inf else {"time_limit": max(0.01, deadline - time.perf_counter())},
    )
    if result.status != 0 or result.x is None:
        return []
    duals = np.maximum(0.0, -result.ineqlin.marginals)
    prices = np.zeros(len(tables.rows))
    prices[upper] += duals[: upper.sum()]
    prices[lower] -= duals[upper.sum() :]
    prices = prices / programme.unit
    largest = float(np.abs(prices).max()) or 1.0
    exact = [Fraction(price) for price in prices.tolist()]
    rounded = [Fraction(price / largest).limit_denominator(DENOMINATOR) for price in prices.tolist()]
    return [tuple(exact), tuple(rounded)]


def _no_choice(problem: ChoiceProblem, tables: ScaledTables, proven: bool, started: float, deadline: float) -> Solution:
    """The answer where no choice was found at all."""
    if problem.plain:
        return without_choice(problem, least_costs(problem), "worst", started, ("the limit of resource 0",))
    return no_choice(problem, tables, proven, "worst", started, deadline)


def _without(sums: Solution) -> WorstSolution:
    return WorstSolution(None, math.inf, sums.loss, sums.cost, sums.status, sums.proof, None, sums, sums.seconds)
