"""Exact for one limit: dynamic programming over a small core, with lists of undominated states.

1. The linear relaxation (`hull.relax`) gives a multiplier, a choice that the multiplier prefers (the *base*), and a bound.
2. Everything is told relative to the base: an option costs `more` and has `lost` so much, both of either sign, and the
   base leaves `slack` of the limit. A *state* is a pair (more, lost): items looked at so far moved, the others at the base.
3. Items are looked at in the order in which the slopes of their alternatives lie near the multiplier: those are the
   items that an optimal choice is likely to treat otherwise than the base does. Most have no alternative worth a look.
4. Of two states, one that costs no less and loses no less than the other is dropped (dominance), and so is every state
   that cannot lead to less than the best choice known (bound). When no state is left, that choice is optimal.

After Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", EJOR 83 (1995). Losses are the integers of
`certificate.scaled` and costs are divided by their greatest common divisor; floating point is used in bounds only, where
it errs on the safe side.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from .arrays import Bools, Floats, Ints
from .certificate import ScaledTables, answer, scaled
from .hull import Relaxation, fill, relax
from .layers import Layer, trace
from .problem import ChoiceProblem, Solution, check_plain, least_costs, without_choice

# Candidates (states times options) looked at for one item. A first sweep that never needs more is exact; else a wider
# one follows, which starts from the choice found by the first and so drops more. Then the search gives up.
WIDTHS = (2**16, 2**21)
STATES_LIMIT = 2**23  # states kept for tracing back in one sweep, 8 bytes each
NOISE = 2**14  # scaled loss, 2^-46 of the total: about the rounding of the tables themselves, not worth an incomplete search
SAFE = 1e-12  # relative allowance in bounds: thousands of times the rounding of the few operations behind them


def solve(problem: ChoiceProblem, *, time_limit: float | None = None) -> Solution:
    """Exact search in a minimal core, for one limit and nothing else: the choice of least loss, proven, at any size.

    OPTIMAL, unless `time_limit` (seconds) or the room for states ends the search first: then LIMIT, with the best choice
    found, at least as good as that of `hull`. Without a time limit, the same problem always gets the same answer.
    Raises ValueError when there are several resources, or rules.
    """
    started = time.perf_counter()
    check_plain(problem, "core")
    least = least_costs(problem)
    if least[0] > problem.limit[0]:
        return without_choice(problem, least, "core", started, ("the limit of resource 0",))
    tables = scaled(problem)
    relaxation = relax(tables)
    deadline = math.inf if time_limit is None else started + time_limit
    choice, complete = search(tables, relaxation, deadline)
    multipliers = [relaxation.multiplier]
    return answer(problem, choice, multipliers, "core", started, searched=complete, stopped=not complete, tables=tables)


def search(tables: ScaledTables, relaxation: Relaxation, deadline: float) -> tuple[Ints, bool]:
    """The best choice (n,) found before `deadline` (a reading of `time.perf_counter`), and whether it is proven optimal."""
    core = _Core.around(tables, relaxation)
    choice, complete = fill(tables, relaxation.choice), False
    for width in WIDTHS:
        choice, complete = _sweep(core, choice, width, deadline)
        if complete or time.perf_counter() >= deadline:
            break
    return choice, complete


@dataclass(frozen=True, eq=False)
class _Core:
    """The tables relative to the base.

    `more`, `lost` (n, m): cost and loss of an option less those of the item's base option. `slack`: what the base leaves
    of the limit. `allowed` (n, m) leaves out the base and what costs and loses no less. Costs are divided by their
    greatest common divisor. With lambda the multiplier, the *reduced* cost of an option is lost + lambda more >= 0, and

        loss of a choice - loss of the base  >=  sum of its reduced costs - lambda slack

    `reduced` (n, m) is that, and `room` lambda slack, within rounding; both lean to the side that drops less.
    """

    base: Ints
    more: Ints
    lost: Ints
    slack: int
    allowed: Bools
    reduced: Floats
    room: float

    @classmethod
    def around(cls, tables: ScaledTables, relaxation: Relaxation) -> _Core:
        base, rows, cost = relaxation.choice, np.arange(len(relaxation.choice)), tables.cost[0]
        more = cost - cost[rows, base][:, None]
        lost = tables.loss - tables.loss[rows, base][:, None]
        slack = int(tables.limit[0] - cost[rows, base].sum())
        divisor = _common_divisor(more[tables.allowed])
        if divisor > 1:
            more, slack = more // divisor, slack // divisor
        price = float(relaxation.multiplier * divisor)
        reduced = price * more
        magnitude = np.abs(reduced)
        reduced += lost
        magnitude += np.abs(lost)
        magnitude *= SAFE
        reduced -= magnitude
        allowed = tables.allowed & ((more < 0) | (lost < 0))
        return cls(base, more, lost, slack, allowed, reduced, price * slack * (1 + SAFE))

    def alternatives(self, best: int) -> Bools:
        """Options (n, m) that a choice losing less than `best` (relative to the base) may contain."""
        return self.allowed & (self.reduced <= best - 1 + self.room + SAFE * abs(best))

    def order(self, alternatives: Bools) -> tuple[Ints, Floats, Floats]:
        """The items with alternatives, nearest to the multiplier first, and two rates for each: over all items after it,

        `up`, the most loss that a unit of cost can save, and `down`, the least loss that saving a unit of cost can take.
        """
        items = np.flatnonzero(alternatives.any(axis=1))
        open_, more, lost = alternatives[items], self.more[items], self.lost[items]
        slope = np.divide(-lost, more, out=np.zeros(more.shape), where=open_ & (more != 0))
        up = np.where(open_ & (more > 0), slope, 0.0).max(axis=1)
        down = np.where(open_ & (more < 0), slope, np.inf).min(axis=1)
        # Turn and turn about: the item whose step up is nearest, the one whose step down is, the second of each, ...
        by_up, by_down = np.argsort(-up, kind="stable"), np.argsort(down, kind="stable")
        order = np.argsort(np.minimum(2 * np.argsort(by_up), 2 * np.argsort(by_down) + 1), kind="stable")
        up_after = np.append(np.maximum.accumulate(up[order][::-1])[::-1], 0.0)[1:]
        down_after = np.append(np.minimum.accumulate(down[order][::-1])[::-1], np.inf)[1:]
        return items[order], up_after * (1 + SAFE), down_after * (1 - SAFE)


def _common_divisor(numbers: Ints) -> int:
    """The greatest common divisor, 1 where all are zero. That of a few is nearly always that of all, and checked faster."""
    divisor = max(1, int(np.gcd.reduce(numbers[:: 1 + len(numbers) // 1000])))
    return divisor if not (numbers % divisor).any() else max(1, int(np.gcd.reduce(numbers)))


def _sweep(core: _Core, choice: Ints, width: int, deadline: float) -> tuple[Ints, bool]:
    """Look at the core's items in order. Returns the best choice, `choice` if nothing loses less, and whether none can."""
    best = int(core.lost[np.arange(len(choice)), choice].sum())
    alternatives = core.alternatives(best)
    items, ups, downs = core.order(alternatives)
    more = lost = np.zeros(1, dtype=np.int64)
    left, credit = np.full(1, core.slack), np.zeros(1)
    layers: list[Layer] = []
    found: tuple[int, int] | None = None  # (layers, state) of the best choice, once one beats `choice`
    states, complete = 0, True
    for item, up, down in zip(items.tolist(), ups.tolist(), downs.tolist(), strict=True):
        others = np.flatnonzero(alternatives[item])
        if not len(others):
            continue
        if time.perf_counter() >= deadline or states > STATES_LIMIT:
            complete = False
            break
        options = np.append(core.base[item], others)
        before = len(more)
        if before * len(options) > width:
            complete = False
            if best + core.room <= NOISE:
                break
            promising = np.lexsort((np.abs(left), lost - credit))[: max(1, width // len(options))]
            kept = np.zeros(before, dtype=np.bool_)
            kept[promising] = True
        else:
            kept = np.ones(before, dtype=np.bool_)
        more = np.add.outer(core.more[item, options], more).ravel()
        lost = np.add.outer(core.lost[item, options], lost).ravel()
        left = core.slack - more
        # What is left may save `up` a unit; what is overdrawn must be won back at `down` a unit.
        credit = np.where(left >= 0, up, down) * left
        origin = np.flatnonzero(np.tile(kept, len(options)) & (credit >= lost - (best - 1)))
        origin = _undominated(origin, more, lost)
        more, lost, left, credit = more[origin], lost[origin], left[origin], credit[origin]
        layers.append(Layer(item, options, before, origin))
        states += len(origin)
        last = int(np.searchsorted(more, core.slack, side="right")) - 1
        if last >= 0 and lost[last] < best:
            best, found = int(lost[last]), (len(layers), last)
            alternatives = core.alternatives(best)
        if not len(origin):
            break
    return (choice if found is None else trace(layers[: found[0]], found[1], core.base)), complete


def _undominated(candidates: Ints, more: Ints, lost: Ints) -> Ints:
    """Those of `candidates` (indices) that no other equals or beats in both, by rising `more` and falling `lost`."""
    candidates = candidates[np.argsort(more[candidates], kind="stable")]
    lost = lost[candidates]
    falls = np.ones(len(candidates), dtype=np.bool_)
    falls[1:] = lost[1:] < np.minimum.accumulate(lost)[:-1]
    candidates = candidates[falls]
    more = more[candidates]
    last_of_equals = np.ones(len(candidates), dtype=np.bool_)
    last_of_equals[:-1] = more[1:] != more[:-1]
    return candidates[last_of_equals]
