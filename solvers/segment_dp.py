"""Segments and bits at once: consecutive items that share an option share its overhead (SAQ, arXiv 2509.12086).

Items in a row (blocks of dimensions, groups of columns) are cut into segments. All items of a segment take one option, and
opening a segment with option j costs overhead[j] (its scale and zero point, say). Exact dynamic programming over the cost:

    best_i[u]    = min_j F_i[j, u]                                                     least loss of items 0 .. i within u
    F_i[j, u]    = loss[i, j] + min( F_{i-1}[j, u - cost[i, j]],                       the segment goes on
                                     best_{i-1}[u - cost[i, j] - overhead[j]] )        a segment begins

which is O(n m U), where SAQ's own programme, over all lengths of the next segment, is O(n^2 m U). Costs are told above each
item's cheapest, and U counts units of their greatest common divisor. Losses are the integers of `certificate.scaled`.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Bools, Floats, Ints
from .certificate import ScaledTables, answer, scaled
from .hull import fill, relax
from .problem import ChoiceProblem, Solution, check_plain, least_costs, without_choice

NOTHING = 2**62  # the loss where nothing keeps the limit
CELLS = 2**27  # entries of F over all items: about two seconds
CELLS_OF_AN_ITEM = 2**23  # 64 MiB for each of the arrays that hold them
BITS = tuple(range(14))  # SAQ's options: 0 .. 13 bits a dimension


@dataclass(frozen=True)
class Segmentation:
    """`segments`: (start, stop, option), the items start .. stop - 1 on one option, in order; with their loss and cost,
    overheads included, added up from the tables."""

    segments: tuple[tuple[int, int, int], ...]
    loss: float
    cost: int


def segment(
    loss: npt.ArrayLike,
    cost: npt.ArrayLike,
    overhead: npt.ArrayLike,
    limit: int,
    *,
    allowed: npt.ArrayLike | None = None,
    max_segments: int | None = None,
    prefer_fewer: float = 0.0,
) -> Segmentation:
    """The segments and options of least loss whose cost, overheads included, is at most `limit`.

        minimise  sum_s sum_{i in s} loss[i, j_s]   subject to   sum_s ( overhead[j_s] + sum_{i in s} cost[i, j_s] ) <= limit

    `loss` (n, m) >= 0, `cost` (n, m) and `overhead` (m,) whole numbers >= 0, `allowed` (n, m) bool. There are at most
    `max_segments` segments. `prefer_fewer` is a share: the number of segments is raised from 1, and a larger number counts
    only when it loses less than (1 - prefer_fewer) times what the last that counted loses. So much a segment must be worth.

    SAQ's own rules: overhead of 64 bits, 0 for the option of zero bits; a limit of (bits a dimension) * dimensions + 64, since
    one segment's factors are free; max_segments = dimensions / 64 for less than 2 bits a dimension, dimensions / 128 else, a
    tail of zero bits counted; prefer_fewer = 0.01 as in its program, 0.001 as in its paper. For its tables see `saq_tables`.

    Raises ValueError when the tables are no choice problem, no segmentation keeps the limit (it says which limit would do), or
    the programme is too large: n m times the units of cost and, where segments are counted, their number may be 2^27.
    """
    table: Floats = np.asarray(loss, dtype=np.float64)
    mask = np.ones(table.shape, dtype=np.bool_) if allowed is None else np.asarray(allowed)
    tables = scaled(ChoiceProblem(table, np.asarray(cost)[None], np.array([operator.index(limit)]), mask))
    opening = np.asarray(overhead)
    if opening.shape != table.shape[1:] or not np.issubdtype(opening.dtype, np.integer) or np.any(opening < 0):
        raise ValueError(f"overhead must be {table.shape[1]} whole numbers of at least 0, one an option")
    if (max_segments is not None and max_segments < 1) or not 0 <= prefer_fewer < 1:
        raise ValueError("max_segments is at least 1, and prefer_fewer a share of at least 0 and less than 1")
    counted = 0
    if max_segments is not None or prefer_fewer:
        counted = min(len(table), max_segments or len(table))
    least = _least_cost(tables, opening, counted)
    if limit < least:
        raise ValueError(f"a limit of {limit} is below what the cheapest segments cost, {least}; raise it to that at least")
    programme = _Programme.of(tables, opening, counted)
    programme.check_size("take coarser costs, or fewer segments")
    sweep = _sweep(programme, math.inf)
    assert sweep is not None  # it has no deadline
    segments = _trace(programme, sweep, _number(sweep.ends, prefer_fewer))
    lost = math.fsum(value for start, stop, option in segments for value in table[start:stop, option].tolist())
    spent = sum(int(opening[option]) + int(tables.cost[0, start:stop, option].sum()) for start, stop, option in segments)
    return Segmentation(segments, lost, spent)


def saq_tables(variance: npt.ArrayLike, bits: Sequence[int] = BITS, block: int = 64) -> tuple[Floats, Ints, Ints]:
    """SAQ's tables `loss` (n, m), `cost` (n, m) and `overhead` (m,) for the variances (D,) of the dimensions, falling.

    An item is a block of dimensions, zeros making up the last. At b bits it loses sum sigma^2 / 2^b (the standard deviation of
    an inner product's error, without the factor 1 / pi of the paper) and costs block * b bits; a segment of more than zero
    bits stores two factors of 32 bits. With n = ceil(D / block), the budget of a mean of b bits is b * n * block + 64.

    Raises ValueError when a variance is negative or not finite, a width of `bits` negative, or `block` less than 1.
    """
    given = np.asarray(variance, dtype=np.float64)
    if given.ndim != 1 or not len(given) or not np.isfinite(given).all() or np.any(given < 0):
        raise ValueError("variance must be a list of finite numbers of at least 0, one a dimension")
    if block < 1 or not len(bits) or min(bits) < 0:
        raise ValueError("a block has at least one dimension, and bits are at least 0")
    padded = np.zeros(-(-len(given) // block) * block)
    padded[: len(given)] = given
    widths = np.array(bits, dtype=np.int64)
    loss = np.ldexp(padded.reshape(-1, block).sum(axis=1)[:, None], -widths)
    cost = np.tile(block * widths, (len(loss), 1))
    return loss, cost, np.where(widths > 0, 64, 0)


def solve(problem: ChoiceProblem, *, time_limit: float | None = None) -> Solution:
    """Exact dynamic programming over every unit of cost, for one limit and costs of few units: the textbook's table.

    OPTIMAL, unless `time_limit` (seconds) ends the sweep: then LIMIT, and the answer of `hull`. It is `segment` without
    overheads.

    Raises ValueError when there are several resources, or rules, and when the limit has too many units: options times units
    (of the greatest common divisor, above the cheapest choice) may be 2^23, and times items 2^27.
    """
    started = time.perf_counter()
    check_plain(problem, "segment_dp")
    least = least_costs(problem)
    if least[0] > problem.limit[0]:
        return without_choice(problem, least, "segment_dp", started, ("the limit of resource 0",))
    tables = scaled(problem)
    programme = _Programme.of(tables, np.zeros(problem.loss.shape[1], dtype=np.int64), 0)
    programme.check_size("measure costs in a larger unit, or use `core`")
    relaxation = relax(tables)
    sweep = _sweep(programme, math.inf if time_limit is None else started + time_limit)
    if sweep is None:
        known = fill(tables, relaxation.choice)
        return answer(problem, known, [relaxation.multiplier], "segment_dp", started, stopped=True, tables=tables)
    choice = np.zeros(problem.items, dtype=np.int64)
    for start, stop, option in _trace(programme, sweep, 0):
        choice[start:stop] = option
    return answer(problem, choice, [relaxation.multiplier], "segment_dp", started, searched=True, tables=tables)


@dataclass(frozen=True, eq=False)
class _Programme:
    """The tables (n, m) in units: `more` is the cost above the item's cheapest, `opening` (m,) the overhead, `units` what the
    limit leaves above the cheapest of all. Segments are counted up to `counted`, not at all where that is 0."""

    loss: Ints
    more: Ints
    allowed: Bools
    opening: Ints
    units: int
    counted: int

    @classmethod
    def of(cls, tables: ScaledTables, overhead: Ints, counted: int) -> _Programme:
        cost = tables.cost[0]
        cheapest = np.where(tables.allowed, cost, np.iinfo(np.int64).max).min(axis=1)
        more = np.where(tables.allowed, cost - cheapest[:, None], 0)
        unit = max(1, math.gcd(int(np.gcd.reduce(more, axis=None)), int(np.gcd.reduce(overhead))))
        left = int(tables.limit[0] - cheapest.sum())
        left = min(left, int(more.max(axis=1).sum()) + len(more) * int(overhead.max()))  # nothing costs more
        return cls(tables.loss, more // unit, tables.allowed, overhead.astype(np.int64) // unit, left // unit, counted)

    def check_size(self, remedy: str) -> None:
        of_an_item = self.loss.shape[1] * (self.counted + 1) * (self.units + 1)
        if of_an_item > CELLS_OF_AN_ITEM or of_an_item * len(self.loss) > CELLS:
            shape = " x ".join(map(str, (*self.loss.shape, *[self.counted + 1] * (self.counted > 0))))
            raise ValueError(f"a table of {shape} entries for each of {self.units} units of cost is too large; {remedy}")


@dataclass(frozen=True, eq=False)
class _Sweep:
    """What led to F, for each item: `last` (k, u), the option of the item in the best of k segments within u units; `begins`
    (j, k, u / 8), a bit for each u, whether a segment begins with the item on option j, u being what is left before it.
    `ends` (k,): the least loss of all items. Where segments are not counted, k is 0 only."""

    last: list[npt.NDArray[Any]]
    begins: list[npt.NDArray[np.uint8]]
    ends: Ints


def _sweep(programme: _Programme, deadline: float) -> _Sweep | None:
    """The recursion at the top of this file, for every number of segments; None past the deadline."""
    items, options = programme.loss.shape
    shape = (programme.counted + 1, programme.units + 1)
    best, going_on = np.full(shape, NOTHING), np.full((options, *shape), NOTHING)
    best[0] = 0  # no item, no segment
    last, begins = [], []
    for item in range(items):
        if time.perf_counter() >= deadline:
            return None
        following, begun = np.full_like(going_on, NOTHING), np.zeros(going_on.shape, dtype=np.bool_)
        for option in np.flatnonzero(programme.allowed[item]).tolist():
            more = int(programme.more[item, option])
            opened = _opened(best, int(programme.opening[option]), programme.counted > 0)
            begun[option] = opened < going_on[option]
            reached = np.minimum(opened, going_on[option])[:, : max(0, shape[1] - more)]
            following[option, :, more:] = reached + programme.loss[item, option]
        going_on = np.minimum(following, NOTHING)
        best = going_on.min(axis=0)
        last.append(going_on.argmin(axis=0).astype(np.min_scalar_type(options - 1)))
        begins.append(np.packbits(begun, axis=-1))
    return _Sweep(last, begins, best[:, -1])


def _opened(best: Ints, opening: int, counted: bool) -> Ints:
    """`best` (k, u) after one segment more, and its overhead."""
    opened = np.full_like(best, NOTHING)
    before = best[: len(best) - counted, : max(0, best.shape[1] - opening)]
    opened[int(counted) :, opening:] = before
    return opened


def _number(ends: Ints, prefer_fewer: float) -> int:
    """The number of segments, by the rule of `segment`; 0 where they are not counted."""
    least, share = ends.tolist(), 1 - Fraction(prefer_fewer)
    found = next(number for number, lost in enumerate(least) if lost < NOTHING)
    for number in range(found + 1, len(least)):
        if least[number] < share * least[found]:
            found = number
    return found


def _trace(programme: _Programme, sweep: _Sweep, number: int) -> tuple[tuple[int, int, int], ...]:
    """The segments behind the best of all items in so many segments."""
    left, stop = programme.units, len(programme.loss)
    option = int(sweep.last[-1][number, left])
    segments = []
    for item in range(stop - 1, -1, -1):
        left -= int(programme.more[item, option])
        if sweep.begins[item][option, number, left >> 3] >> (7 - (left & 7)) & 1:
            segments.append((item, stop, option))
            left, stop = left - int(programme.opening[option]), item
            number -= programme.counted > 0
            option = int(sweep.last[item - 1][number, left]) if item else option
    return tuple(reversed(segments))


def _least_cost(tables: ScaledTables, overhead: Ints, counted: int) -> int:
    """The cost of the cheapest segments, at most `counted` of them where that is not 0."""
    best, going_on = np.full(counted + 1, NOTHING), np.full((len(overhead), counted + 1), NOTHING)
    best[0] = 0
    for cost, allowed in zip(tables.cost[0], tables.allowed, strict=True):
        opened = np.full(counted + 1, NOTHING)
        opened[int(counted > 0) :] = best[: counted + (counted == 0)]
        going_on = np.minimum(going_on, opened + overhead[:, None]) + cost[:, None]
        going_on[~allowed] = NOTHING
        going_on = np.minimum(going_on, NOTHING)
        best = going_on.min(axis=0)
    if best.min() >= NOTHING:
        raise ValueError(f"{counted} segments are too few for what is allowed; allow more segments or more options")
    return int(best.min())
