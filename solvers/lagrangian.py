"""Several resources, and rules: the Lagrangian dual by cutting planes, and a choice beside its solution.

Price every bounded side s of the rows with pi_s >= 0. For given prices each item chooses for itself, and

    g(pi) = min over choices x of   loss(x) + sum_s pi_s excess_s(x),      excess = total - most, or least - total

is concave, a lower bound for every pi, and each choice met on the way is a plane above it: the *cut* loss(x) + pi excess(x).
The master programme, a linear one of few variables, maximises the smallest cut (Kelley 1960; Cheney and Goldstein 1959);
its solution is the next pi, drawn towards the best so far so that it does not swing (Wentges 1997). The weights of the
cuts at the optimum mix their choices into a solution of the linear relaxation: most items are of one mind, and the few
that are not, with those nearest to changing theirs, are chosen by a small integer programme, the rest being fixed.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np

from . import hull
from .arrays import Bools, Floats, Ints
from .certificate import ScaledTables, answer, scaled
from .highs import least, relax_by_highs
from .infeasible import no_choice
from .problem import ChoiceProblem, Solution, least_costs
from .rows import FREE

CUTS = 400
PAIRS_FOR_HIGHS = 20_000  # of item and option: more, and cutting planes are faster
CLOSE = 3e-7  # relative: where the master's value and the best bound count as one
STALLED = 4  # rounds in which neither moves: HiGHS's tolerances see no difference any more
DRAWN = 0.3  # share of the best prices so far in the next prices
PRICED_OUT = 1e-7  # a cut that weighs less in the mix has no say
NODES = 200  # of the search tree, for a good choice rather than a proven one; a count, so that the answer is always the same
WORTH = 5e-6  # of the loss: less is not searched for
LAST_NODES = 20_000  # where not even a choice was found
UNDECIDED = (64, 512, 4096)  # items left to the integer programme, more where fewer do not make a choice


def solve(problem: ChoiceProblem, *, time_limit: float | None = None) -> Solution:
    """Lagrangian relaxation for any rows and rules: a near choice and the best bound that multipliers can give, at any size.

    OPTIMAL only by luck, when the gap is zero. INFEASIBLE when HiGHS proves it. LIMIT, with a choice where one was found,
    when `time_limit` cut the work short.
    """
    started = time.perf_counter()
    deadline = math.inf if time_limit is None else started + time_limit
    tables = scaled(problem)
    relaxation = relax(tables, deadline)
    choice, proven = near_choice(tables, relaxation, deadline)
    if choice is None and problem.plain and least_costs(problem)[0] <= problem.limit[0]:
        choice = hull.fill(tables, hull.relax(tables).choice)
    if choice is None:
        return no_choice(problem, tables, proven, "lagrangian", started, deadline)
    stopped = not relaxation.converged
    return answer(problem, choice, relaxation.multipliers, "lagrangian", started, stopped=stopped, tables=tables)


@dataclass(frozen=True, eq=False)
class DualSolution:
    """`multipliers`, one a row, in scaled loss a unit of cost; `choice` (n,), the relaxation's, rounded, which may break rows.

    `unsettled` (n,): where the relaxation divides an item between options. `converged`: no multipliers bound better.
    """

    multipliers: list[Fraction]
    choice: Ints
    unsettled: Bools
    converged: bool


@dataclass(frozen=True, eq=False)
class _Sides:
    """The bounded sides of the rows: the `row` of each, its `sign` (+1 upper, -1 lower), its bound, the unit it is told in."""

    row: Ints
    sign: Ints
    edge: Ints
    unit: Floats

    @classmethod
    def of(cls, tables: ScaledTables) -> _Sides:
        """All sides that some choice of allowed options breaks; the others cannot matter."""
        found: list[tuple[int, int, int, float]] = []
        rows = tables.rows
        for row in range(len(rows)):
            table = rows.table(row)
            lowest = int(np.where(tables.allowed, table, FREE // len(table)).min(axis=1).sum())
            highest = int(np.where(tables.allowed, table, -FREE // len(table)).max(axis=1).sum())
            unit = float(max(1, highest - lowest))
            if rows.most[row] < highest:
                found.append((row, 1, int(rows.most[row]), unit))
            if rows.least[row] > lowest:
                found.append((row, -1, int(rows.least[row]), unit))
        row_, sign, edge = (np.array([side[k] for side in found], dtype=np.int64) for k in range(3))
        return cls(row_, sign, edge, np.array([side[3] for side in found], dtype=np.float64))

    def excess(self, totals: Ints) -> Floats:
        """By how much totals (q,) break each side, in its unit; negative where they keep it."""
        broken: Floats = self.sign * (totals[self.row] - self.edge) / self.unit
        return broken

    def prices(self, multipliers: Floats, rows: int) -> Floats:
        """Prices (q,) of the rows for multipliers of the sides."""
        prices = np.zeros(rows)
        np.add.at(prices, self.row, self.sign * multipliers / self.unit)
        return prices


def relax(tables: ScaledTables, deadline: float) -> DualSolution:
    """The best multipliers: of a small problem by HiGHS, which solves the linear relaxation, of a large one by cutting planes."""
    if int(tables.allowed.sum()) <= PAIRS_FOR_HIGHS:
        relaxed = relax_by_highs(tables, deadline)
        if relaxed is not None:
            unsettled = relaxed.shares.max(axis=1) < 1 - PRICED_OUT
            return DualSolution(relaxed.multipliers, relaxed.shares.argmax(axis=1), unsettled, True)
    return relax_by_cuts(tables, deadline)


def relax_by_cuts(tables: ScaledTables, deadline: float) -> DualSolution:
    """Maximise the dual by cutting planes; see the top of this file. `deadline` is a reading of `time.perf_counter`."""
    sides, rows = _Sides.of(tables), tables.rows
    loss = np.where(tables.allowed, tables.loss, 0).astype(np.float64)
    items = np.arange(len(loss))
    # Multipliers are told in `unit` a side's unit, and values in `unit`: it follows the optimum, so that both are about one.
    unit = float(loss.max()) * len(loss) or 1.0
    choices: list[Ints] = []
    values: list[float] = []  # of each cut where the multipliers are zero
    slopes: list[Floats] = []
    point = best_point = np.zeros(len(sides.row))
    best_value, reach = -math.inf, 1.0
    weights, converged, gaps = np.ones(1), not len(sides.row), [math.inf]
    while not choices or (not converged and len(choices) < CUTS and time.perf_counter() < deadline):
        priced = rows.priced(loss, (sides.prices(point, len(rows)) * unit).tolist())
        priced[~tables.allowed] = np.inf
        choice = priced.argmin(axis=1)
        choices.append(choice)
        values.append(float(loss[items, choice].sum()))
        slopes.append(sides.excess(rows.totals(choice)))
        value = values[-1] / unit + float(slopes[-1] @ point)
        if value > best_value:
            best_value, best_point = value, point
        if converged:
            break
        goal, top, weights = _master(np.array(values) / unit, np.array(slopes), reach)
        gaps.append(top - best_value)
        if gaps[-1] <= CLOSE * max(abs(top), abs(best_value)) or gaps[-STALLED:] == [gaps[-1]] * STALLED:
            converged = bool((goal < reach * (1 - 1e-9)).all())
            reach *= 30.0
        elif 0 < top < 0.01:
            unit, goal, best_point, best_value = unit * top, goal / top, best_point / top, best_value / top
        # The plain master's point, now and then, so that drawing cannot hold the search where it is.
        point = goal if len(choices) % 4 == 0 else DRAWN * best_point + (1 - DRAWN) * goal
    prices = sides.prices(best_point, len(rows)) * unit
    mix, heaviest = np.array(choices[: len(weights)]), choices[int(weights.argmax())]
    unsettled = (mix[weights > PRICED_OUT] != heaviest).any(axis=0)
    return DualSolution([Fraction(price) for price in prices.tolist()], heaviest, unsettled, converged)


def _master(values: Floats, slopes: Floats, reach: float) -> tuple[Floats, float, Floats]:
    """Maximise the smallest of values + slopes @ pi over 0 <= pi <= reach: pi, the maximum, and the weights of the cuts."""
    from scipy.optimize import linprog

    cuts, sides = slopes.shape
    result = linprog(
        np.append(np.zeros(sides), -1.0),
        A_ub=np.hstack([-slopes, np.ones((cuts, 1))]),
        b_ub=values,
        bounds=[(0.0, reach)] * sides + [(None, None)],
        method="highs",
    )
    if result.x is None:
        return np.zeros(sides), float(values.min()), np.full(cuts, 1.0 / cuts)
    return result.x[:-1], float(result.x[-1]), np.maximum(0.0, -result.ineqlin.marginals)


def near_choice(tables: ScaledTables, relaxation: DualSolution, deadline: float) -> tuple[Ints | None, bool]:
    """A choice that keeps the rows, made around the relaxation's; or None, and whether it is proven that there is none."""
    loss = tables.loss.astype(np.float64)
    reduced = tables.rows.priced(loss, [float(multiplier) for multiplier in relaxation.multipliers])
    reduced[~tables.allowed] = np.inf
    reduced -= reduced.min(axis=1, keepdims=True)
    elsewhere = reduced.copy()
    elsewhere[np.arange(len(loss)), relaxation.choice] = np.inf
    nearness = np.where(relaxation.unsettled, -1.0, elsewhere.min(axis=1))
    order = np.argsort(nearness, kind="stable")
    worth = WORTH * float(tables.loss[np.arange(len(loss)), relaxation.choice].sum())
    for undecided in [*UNDECIDED, len(order)]:
        among = order[: max(undecided, int(relaxation.unsettled.sum()))]
        part = restricted(tables, relaxation.choice, among)
        found = least(part.loss, part, deadline, nodes=NODES, gap=worth)
        if found.choice is None and not found.done and len(among) == len(order):
            found = least(tables.loss, tables, deadline, nodes=LAST_NODES)
        if found.choice is not None:
            choice = relaxation.choice.copy()
            choice[among] = found.choice
            return choice, False
        if len(among) == len(order):
            return None, found.done
        if time.perf_counter() >= deadline:
            break
    return None, False


def restricted(tables: ScaledTables, choice: Ints, among: Ints) -> ScaledTables:
    """The problem over the items `among` alone, all others fixed at `choice`."""
    rows = tables.rows.restricted(among, choice)
    return replace(tables, loss=tables.loss[among], cost=rows.cost, allowed=tables.allowed[among], rows=rows)
