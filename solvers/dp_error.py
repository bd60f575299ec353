"""Dynamic programming over the error: the loss is cut into buckets, and F[t] is the least cost of a total of t buckets.

    F_i[t] = min_j F_{i-1}[t - b[i, j]] + cost[i, j]

It answers two questions: the least cost under a limit on the error, which is what L-GreCo (arXiv 2210.17357) asks, with 10 000
buckets; and, read the other way round, the least error within a limit on the cost: the smallest t whose F[t] is within it.
Rounding errors *down* to buckets makes that an approximation scheme with a guarantee (Lawler 1979); L-GreCo rounds them up,
and may then return a plan that is larger than the uniform plan its limit was read off.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .arrays import Bools, Floats, Ints
from .certificate import ScaledTables, answer, lower_bound, scaled
from .hull import Relaxation, fill, relax
from .problem import ChoiceProblem, Solution, check_plain, least_costs, without_choice

NOTHING = 2**62  # the cost where no choice has that total
ROOM = 2**28  # bytes for the options that led to each total
SAFE = 1e-12  # relative allowance in bounds: thousands of times the rounding of the few operations behind them

Rounding = Literal["ceil", "floor", "fixed"]


def solve(problem: ChoiceProblem, *, time_limit: float | None = None, buckets: int = 10_000) -> Solution:
    """Dynamic programming over discretised error: a loss within a stated factor of the least, for one limit.

    `hull` gives a choice of loss U and a lower bound. Options that only choices worse than U can contain are dropped (reduced
    costs); M, the sum of what each item loses least with the others, is paid in any case. Above M, losses are measured in
    buckets of delta = (U - M) / buckets, rounded down. If t is the least total of buckets within the limit, every choice that
    is better than U loses at least M + t delta, and the choice behind t less than k delta more, with k items left to decide:

        loss <= optimum + k delta <= (1 + epsilon) optimum,    epsilon = k delta / lower bound of the optimum

    `reason` states epsilon. The answer is the better of that choice, filled up, and that of `hull`. Where the losses are so
    few whole multiples of a number that each has a bucket of its own, delta is that number and the answer is exact (OPTIMAL).
    With very many items there are fewer buckets than asked for, so that the table stays within 256 MiB; epsilon says so.
    LIMIT, and the answer of `hull`, when `time_limit` (seconds) ends the sweep.

    Raises ValueError when there is more than one limit, or anything else, or no bucket.
    """
    started = time.perf_counter()
    check_plain(problem, "dp_error")
    if buckets < 1:
        raise ValueError(f"errors need at least one bucket, not {buckets}")
    least = least_costs(problem)
    if least[0] > problem.limit[0]:
        return without_choice(problem, least, "dp_error", started, ("the limit of resource 0",))
    deadline = math.inf if time_limit is None else started + time_limit
    tables = scaled(problem)
    relaxation = relax(tables)
    rows, known = np.arange(problem.items), fill(tables, relaxation.choice)
    grid = _Grid.around(tables, relaxation, known, buckets)
    best, stopped = known, False
    if len(grid.items):
        within = int(tables.limit[0]) - int(np.delete(tables.cost[0, rows, grid.base], grid.items).sum())
        sweep = _sweep(tables.cost[0][grid.items], grid.bucket, grid.buckets, deadline)
        stopped = sweep is None
        reached = np.flatnonzero(sweep.least <= within) if sweep else np.zeros(0, dtype=np.int64)
        if sweep and len(reached):
            found = grid.base.copy()
            found[grid.items] = sweep.choice(int(reached[0]))
            best = min((known, fill(tables, found)), key=lambda choice: int(tables.loss[rows, choice].sum()))
    solution = answer(
        problem, best, [relaxation.multiplier], "dp_error", started, searched=grid.exact and not stopped, stopped=stopped,
        tables=tables,
    )  # fmt: skip
    if stopped:
        return replace(solution, reason="stopped by the time limit: the choice is that of `hull`")
    return replace(solution, reason=grid.guarantee(tables, relaxation))


@dataclass(frozen=True, eq=False)
class LeastSize:
    """An answer to `least_cost_by_error`: `choice` (n,), its `size` and its true `error` (both added up from the tables),
    and whether that error is `within` the limit. `bound`: no choice within the limit has a smaller size than that.
    """

    choice: Ints
    size: int
    error: float
    within: bool
    bound: int


def least_cost_by_error(
    size: npt.ArrayLike,
    error: npt.ArrayLike,
    limit: float,
    buckets: int = 10_000,
    rounding: Rounding = "fixed",
    *,
    known: Ints | None = None,
) -> LeastSize | None:
    """The least total of `size` (n, m), whole numbers, with a total of `error` (n, m) of at most `limit`; L-GreCo's programme.

    delta = limit / buckets is the width of a bucket. `rounding` says what an error e becomes:

    - "ceil", as published: clip(ceil(e / delta), 1, buckets). Every choice found is within the limit, but one that meets the
      limit exactly (the uniform plan that it was read off) is lost when any of its errors is no multiple of delta, and
      an error of zero takes a bucket.
    - "floor": floor(e / delta). No choice within the limit is lost, and the answer may be beyond it, by less than n delta.
      Its size is `bound`: floor's <= the true least size <= ceil's.
    - "fixed": the smallest choice within the limit among `known` and those that the other two find, floor's at every total.
      It is never larger than ceil's, than `known`, or than the least size for a limit of limit (1 - n / buckets).

    Within the limit means sum e <= limit but for the rounding of decimals, (n + 1) / 2 units in the last place of `limit`: errors
    of 0.8 and 0.4 are within 1.2. An error above the limit never fits (the published clip lets it, for one item alone).
    Returns None when there is no choice within the limit, or "ceil" finds none.

    Raises ValueError when shapes differ, a number is negative or not finite, or the buckets are none or too fine for floating
    point.
    """
    sizes, errors = _checked(size, error, limit, buckets)
    rows, width = np.arange(len(sizes)), limit / buckets
    within = limit + (len(errors) + 1) / 2 * math.ulp(limit)
    ratio = np.minimum(errors, 2 * limit) / width if width else np.zeros(errors.shape)
    out = errors > within
    floors = _sweep(sizes, _buckets(np.floor(ratio), 0, buckets, out), buckets, math.inf)
    bound = int(floors.least.min()) if floors else NOTHING
    if floors is None or bound >= NOTHING:
        return None

    def result(choice: Ints) -> LeastSize:
        total = math.fsum(errors[rows, choice].tolist())
        return LeastSize(choice, int(sizes[rows, choice].sum()), total, total <= within, bound)

    if rounding == "floor":
        return result(floors.choice(int(floors.least.argmin())))
    ceils = _sweep(sizes, _buckets(np.ceil(ratio), 1, buckets, out), buckets, math.inf)
    found = [] if ceils is None or ceils.least.min() >= NOTHING else [result(ceils.choice(int(ceils.least.argmin())))]
    if rounding == "ceil":
        return found[0] if found else None
    found += [] if known is None else [result(known)]
    smallest = min((one for one in found if one.within), key=lambda one: one.size, default=None)
    for total in np.argsort(floors.least, kind="stable").tolist():
        if floors.least[total] >= (NOTHING if smallest is None else smallest.size):
            break
        candidate = result(floors.choice(total))
        if candidate.within:
            return candidate
    return smallest


def _buckets(rounded: Floats, least: int, most: int, out: Bools) -> Ints:
    """Buckets (n, m) of ratios rounded to whole numbers, one more than the last where an option is out of the question."""
    inside: Ints = np.clip(rounded, least, most).astype(np.int64)
    return np.where(out, most + 1, inside)


def _checked(size: npt.ArrayLike, error: npt.ArrayLike, limit: float, buckets: int) -> tuple[Ints, Floats]:
    sizes, errors = np.asarray(size), np.asarray(error, dtype=np.float64)
    if sizes.ndim != 2 or 0 in sizes.shape or sizes.shape != errors.shape:
        raise ValueError(f"size and error must have one shape (items, options), not {sizes.shape} and {errors.shape}")
    if not np.issubdtype(sizes.dtype, np.integer) or np.any(sizes < 0):
        raise ValueError(f"sizes must be whole numbers of at least 0 (bytes), not {sizes.dtype}")
    if not np.isfinite(errors).all() or np.any(errors < 0) or not 0 <= limit < math.inf:
        raise ValueError("errors and their limit must be finite and at least 0; leave out an option without an error")
    if not 1 <= buckets < 2**48 // (len(sizes) + 4):
        raise ValueError(f"buckets must be at least 1 and less than {2**48 // (len(sizes) + 4)}, not {buckets}")
    return sizes.astype(np.int64), errors


@dataclass(frozen=True, eq=False)
class _Sweep:
    """`least` (t + 1,): F of all items; `options` (n, t + 1): the option by which the best total of each layer was reached."""

    least: Ints
    options: npt.NDArray[Any]
    bucket: Ints

    def choice(self, total: int) -> Ints:
        """The choice (n,) behind F[total]."""
        choice = np.zeros(len(self.options), dtype=np.int64)
        for item in range(len(choice) - 1, -1, -1):
            choice[item] = self.options[item, total]
            total -= int(self.bucket[item, choice[item]])
        return choice


def _sweep(cost: Ints, bucket: Ints, buckets: int, deadline: float) -> _Sweep | None:
    """F for totals 0 .. buckets of exactly so many, over `cost` and `bucket` (n, m), where more than `buckets` means not
    allowed; O(n m buckets). None past the deadline."""
    items, width = cost.shape
    least = np.full(buckets + 1, NOTHING)
    least[0] = 0
    options = np.zeros((items, buckets + 1), dtype=np.min_scalar_type(width - 1))
    for item in range(items):
        if time.perf_counter() >= deadline:
            return None
        following = np.full(buckets + 1, NOTHING)
        for option in np.flatnonzero(bucket[item] <= buckets).tolist():
            shift = int(bucket[item, option])
            reached = least[: buckets + 1 - shift] + cost[item, option]
            better = reached < following[shift:]
            np.copyto(following[shift:], reached, where=better)
            np.copyto(options[item, shift:], option, where=better, casting="unsafe")
        least = np.minimum(following, NOTHING)
    return _Sweep(least, options, bucket)


@dataclass(frozen=True, eq=False)
class _Grid:
    """What is left to decide, in buckets of `delta` scaled losses: `items` (k,) with more than one option, `bucket` (k, m)
    for theirs, more than `buckets` where dropped; `base` (n,) is the only option of the others. `paid` is M."""

    items: Ints
    base: Ints
    bucket: Ints
    buckets: int
    delta: int
    paid: int
    exact: bool

    @classmethod
    def around(cls, tables: ScaledTables, relaxation: Relaxation, known: Ints, buckets: int) -> _Grid:
        rows = np.arange(len(known))
        left = _worth_a_look(tables, relaxation, known)
        least = np.where(left, tables.loss, np.iinfo(np.int64).max).min(axis=1)
        paid = int(least.sum())
        items = np.flatnonzero(left.sum(axis=1) > 1)
        base = np.where(left, tables.loss, np.iinfo(np.int64).max).argmin(axis=1)
        above = np.where(left, tables.loss - least[:, None], 0)[items]
        room = int(tables.loss[rows, known].sum()) - paid
        unit = max(1, int(np.gcd.reduce(above, axis=None))) if len(items) else 1
        buckets = max(1, min(buckets, ROOM // max(1, len(items))))
        exact = room // unit <= buckets
        delta = unit if exact else -(-room // buckets)
        buckets = room // delta
        bucket = np.where(left[items], np.minimum(above // delta, buckets + 1), buckets + 1)
        return cls(items, base, bucket, buckets, delta, paid, exact)

    def guarantee(self, tables: ScaledTables, relaxation: Relaxation) -> str:
        if not len(self.items):
            return "exact: no option is left that could lose less"
        if self.exact:
            return f"exact: each loss has a bucket of its own, {self.buckets + 1} in all"
        bound = float(lower_bound(tables, [relaxation.multiplier]))
        beyond = 1.05 * len(self.items) * self.delta  # so that two digits never say too little
        factor = f"epsilon = {beyond / bound:.2g}" if bound > 0 else f"at most {beyond / tables.scale:.2g} above it"
        return f"within a factor of 1 + epsilon of the least loss, {factor}: {self.buckets} buckets, {len(self.items)} items"


def _worth_a_look(tables: ScaledTables, relaxation: Relaxation, known: Ints) -> Bools:
    """Options (n, m) that a choice losing less than `known` may contain, and those of `known`."""
    rows = np.arange(len(known))
    price = float(relaxation.multiplier)
    priced = tables.loss + price * tables.cost[0]
    allowance = SAFE * (float(tables.loss.max()) + price * float(tables.cost.max())) * len(rows)
    priced[~tables.allowed] = np.inf
    reduced = priced - priced.min(axis=1, keepdims=True)
    gap = int(tables.loss[rows, known].sum()) - lower_bound(tables, [relaxation.multiplier])
    left: Bools = reduced <= float(gap) + allowance
    left[rows, known] = True
    return left
