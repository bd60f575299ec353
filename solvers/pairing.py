"""As many up as down: plans in which equal numbers of items go one step up and one step down (SliM-LLM, arXiv 2405.14917).

Equal steps, up for some and down for as many others, leave the mean where it is. SliM-LLM ranks the groups of a layer by
their salience and only looks at one plan for each count p: the p least salient down, the p most salient up (`scan`). With a
table of losses all plans can be looked at (`solve`): what matters of the items so far is the difference d = ups - downs,

    F_i[d] = min_j F_{i-1}[d - w[i, j]] + loss[i, j],    w = +1, 0 or -1;    the answer is F_n[0].
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from . import dp
from .arrays import Floats, Ints
from .certificate import ScaledTables, answer, scaled
from .infeasible import no_choice
from .lagrangian import relax
from .problem import ChoiceProblem, Solution

NOTHING = 2**62  # the loss where no choice has that difference
CELLS = 2**28  # items times differences, a byte each: the options to trace back


@dataclass(frozen=True, eq=False)
class Scan:
    """The best of the plans looked at: `plan` (G,) of -1, 0, +1 with `count` ups and downs, and its `error`.

    `counts` (k,) and `errors` (k,) are those of all plans, in order.
    """

    count: int
    plan: Ints
    error: float
    counts: Ints
    errors: Floats


def scan(
    salience: npt.ArrayLike,
    evaluate: Callable[[Ints], float],
    *,
    include_zero: bool = True,
    include_half: bool = True,
) -> Scan:
    """SliM-LLM's search over one number: for p = 0 .. floor(G / 2) the p least salient of G groups down, the p most salient up.

    `salience` (G,) finite; of equal groups the earlier counts as less salient. `evaluate` gets each plan (G,) of -1, 0, +1 and
    returns its error, say a divergence of the layer's outputs; the first least error wins. The published search leaves out
    p = 0, no mixing (`include_zero`), and p = floor(G / 2) (`include_half`), and so has no plan for fewer than four groups.

    Raises ValueError when no plan is left to look at, a salience is not finite, or an error is not a number.
    """
    given = np.asarray(salience, dtype=np.float64)
    if given.ndim != 1 or not len(given) or not np.isfinite(given).all():
        raise ValueError("salience must be a list of finite numbers, one a group")
    counts = np.arange(0 if include_zero else 1, len(given) // 2 + int(include_half))
    if not len(counts):
        raise ValueError(f"{len(given)} groups leave no plan to look at; include p = 0, and p = {len(given) // 2}")
    rank = np.empty(len(given), dtype=np.int64)
    rank[np.argsort(given, kind="stable")] = np.arange(len(given))
    plans = [(rank >= len(given) - count).astype(np.int64) - (rank < count) for count in counts.tolist()]
    errors = np.array([float(evaluate(plan.copy())) for plan in plans])
    if np.isnan(errors).any():
        raise ValueError(f"the error of the plan for p = {counts[np.isnan(errors).argmax()]} is not a number")
    best = int(errors.argmin())
    return Scan(int(counts[best]), plans[best], float(errors[best]), counts, errors)


def solve(problem: ChoiceProblem, *, time_limit: float | None = None) -> Solution:
    """Exact pairing of ups with downs: one balance rule, any number of options, and one limit, which rarely binds.

    OPTIMAL, or INFEASIBLE. The limit is left out at first: where up and down cost alike, a balanced choice costs what
    it costs. Where the best balanced choice is beyond it after all, the lists of `dp` search on. LIMIT when `time_limit`
    (seconds) ends either search, with a choice where one was found.

    Raises ValueError unless there are one limit, no floor and a single rule `balance` (weights +1 and -1, the sum 0), and
    when the items are too many, 2^28 of items times differences.
    """
    started = time.perf_counter()
    deadline = math.inf if time_limit is None else started + time_limit
    weight = _weights(problem)
    tables = scaled(problem)
    choice, complete = _balanced(tables, weight, deadline)
    if choice is None:
        return no_choice(problem, tables, complete, "pairing", started, deadline)
    if tables.rows.broken(choice):
        left = None if time_limit is None else max(0.0, deadline - time.perf_counter())
        found = dp.solve(problem, time_limit=left)
        return replace(found, solver="pairing", seconds=time.perf_counter() - started)
    prices = relax(tables, deadline).multipliers
    return answer(problem, choice, prices, "pairing", started, searched=complete, stopped=not complete, tables=tables)


def _weights(problem: ChoiceProblem) -> Ints:
    """The weights (n, m) of the balance rule, -1, 0 or +1. Raises ValueError when that is not what the problem has."""
    rules, single = problem.rules, problem.resources == 1 and not problem.floor.any()
    if not single or len(rules) != 1 or (rules[0].least, rules[0].most) != (0, 0) or np.any(np.abs(rules[0].weight) > 1):
        raise ValueError("pairing solves problems with one limit and one rule, a balance of ups and downs; use `best`")
    weight = problem.rows.table(1)
    if len(weight) * (2 * _reach(problem.allowed, weight) + 1) > CELLS:
        raise ValueError(f"{len(weight)} items have too many differences of ups and downs for a table; use `best`")
    return weight


def _reach(allowed: npt.NDArray[np.bool_], weight: Ints) -> int:
    """The largest difference, of either sign, from which the balance can be won back."""
    return min(int((allowed & (weight > 0)).any(axis=1).sum()), int((allowed & (weight < 0)).any(axis=1).sum()))


def _balanced(tables: ScaledTables, weight: Ints, deadline: float) -> tuple[Ints | None, bool]:
    """The balanced choice (n,) of least loss, whatever it costs, None where there is none; and whether the search was complete.

    Of each sign only the best option counts, so each item has three options at most. Past the deadline: no ups and downs.
    """
    items = len(weight)
    reach = _reach(tables.allowed, weight)
    least = np.full(2 * reach + 1, NOTHING)
    least[reach] = 0
    signs = (0, 1, -1)
    taken = np.zeros((items, len(least)), dtype=np.int8)
    loss = np.array([np.where(tables.allowed & (weight == sign), tables.loss, NOTHING) for sign in signs])
    option, lost = loss.argmin(axis=2), loss.min(axis=2)
    for item in range(items):
        if time.perf_counter() >= deadline:
            return (option[0] if (lost[0] < NOTHING).all() else None), False
        following = np.full_like(least, NOTHING)
        for place, sign in enumerate(signs):
            if lost[place, item] < NOTHING:
                to, source = slice(max(0, sign), len(least) + min(0, sign)), slice(max(0, -sign), len(least) - max(0, sign))
                reached = least[source] + lost[place, item]
                better = reached < following[to]
                following[to][better] = reached[better]
                taken[item, to][better] = place
        least = np.minimum(following, NOTHING)
    if least[reach] >= NOTHING:
        return None, True
    choice, difference = np.zeros(items, dtype=np.int64), reach
    for item in range(items - 1, -1, -1):
        place = int(taken[item, difference])
        choice[item] = option[place, item]
        difference -= signs[place]
    return choice, True
