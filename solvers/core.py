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
from dataclasses import dataclass, replace

import numpy as np

from .arrays import Bools, Floats, Ints
from .certificate import ScaledTables, answer, scaled
from .frontier import HullSteps, hull_steps
from .hull import Relaxation, fill, relax
from .layers import Layer, trace
from .problem import ChoiceProblem, Solution, check_plain, least_costs, without_choice

# Candidates (states times options) looked at for one item. A first sweep that never needs more is exact; else a wider
# one follows, which starts from the choice found by the first and so drops more. Then the search gives up.
WIDTHS = (2**16, 2**21)
STATES_LIMIT = 2**23  # states kept for tracing back in one sweep, 8 bytes each
FIRST_CHUNK, LARGEST_CHUNK = 2**10, 2**16  # pairs of move and state looked at together for one that leads anywhere
NOISE = 2**14  # scaled loss, 2^-46 of the total: about the rounding of the tables themselves, not worth an incomplete search
SAFE = 1e-12  # relative allowance in bounds: thousands of times the rounding of the few operations behind them


@dataclass(frozen=True, eq=False)
class Warm:
    """What follows from a problem's tables whatever the limit: worth keeping where many limits are asked for."""

    tables: ScaledTables
    steps: HullSteps
    least: tuple[int, ...]

    @classmethod
    def up(cls, problem: ChoiceProblem) -> Warm:
        tables = scaled(problem)
        return cls(tables, hull_steps(tables.loss, tables.cost[0], tables.allowed), least_costs(problem))

    def under(self, problem: ChoiceProblem) -> ScaledTables:
        """`scaled(problem)`, of a problem that is `within` other limits."""
        return replace(self.tables, limit=problem.limit, rows=problem.rows)


def solve(problem: ChoiceProblem, *, time_limit: float | None = None, warm: Warm | None = None) -> Solution:
    """Exact search in a minimal core, for one limit and nothing else: the choice of least loss, proven, at any size.

    OPTIMAL, unless `time_limit` (seconds) or the room for states ends the search first: then LIMIT, with the best choice
    found, at least as good as that of `hull`. Without a time limit, the same problem always gets the same answer.
    `warm` is that of the same tables: the answer is the same, and sooner. Raises ValueError when there are several
    resources, or rules.
    """
    started = time.perf_counter()
    check_plain(problem, "core")
    least = least_costs(problem) if warm is None else warm.least
    if least[0] > problem.limit[0]:
        return without_choice(problem, least, "core", started, ("the limit of resource 0",))
    tables = scaled(problem) if warm is None else warm.under(problem)
    relaxation = relax(tables, None if warm is None else warm.steps)
    deadline = math.inf if time_limit is None else started + time_limit
    choice, complete = search(tables, relaxation, deadline)
    return answer(
        problem,
        choice,
        [relaxation.multiplier],
        "core",
        started,
        searched=complete,
        stopped=not complete,
        tables=tables,
        least=relaxation.least,
    )


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

    def tightened(self, best: int) -> _Core:
        """Without the part of the slack that no choice losing less than `best` can use: what such a choice costs more than
        the base is a multiple of what its alternatives cost more. Less slack leaves fewer alternatives, and so on."""
        alternatives, slack = self.alternatives(best), self.slack
        while slack and alternatives.any():
            usable = slack - slack % _common_divisor(self.more[alternatives])
            if usable == slack:
                break
            alternatives, slack = replace(self, room=self.room * (usable / self.slack)).alternatives(best), usable
        return replace(self, slack=slack, room=self.room * (slack / self.slack) if self.slack else self.room)

    def order(self, alternatives: Bools) -> tuple[Ints, Floats, Floats]:
        """The items with alternatives, nearest to the multiplier first, and the slopes of each: `up`, the most loss that a
        unit of cost can save there, and `down`, the least loss that saving a unit of cost can take."""
        items = np.flatnonzero(alternatives.any(axis=1))
        open_, more, lost = alternatives[items], self.more[items], self.lost[items]
        slope = np.divide(-lost, more, out=np.zeros(more.shape), where=open_ & (more != 0))
        up = np.where(open_ & (more > 0), slope, 0.0).max(axis=1)
        down = np.where(open_ & (more < 0), slope, np.inf).min(axis=1)
        # Turn and turn about: the item whose step up is nearest, the one whose step down is, the second of each, ...
        by_up, by_down = np.argsort(-up, kind="stable"), np.argsort(down, kind="stable")
        order = np.argsort(np.minimum(2 * np.argsort(by_up), 2 * np.argsort(by_down) + 1), kind="stable")
        return items[order], up[order], down[order]


def _common_divisor(numbers: Ints) -> int:
    """The greatest common divisor, 1 where all are zero. That of a few is nearly always that of all, and checked faster."""
    divisor = max(1, int(np.gcd.reduce(numbers[:: 1 + len(numbers) // 1000])))
    return divisor if not (numbers % divisor).any() else max(1, int(np.gcd.reduce(numbers)))


@dataclass(frozen=True, eq=False)
class _Moves:
    """The alternatives in the order in which the search looks at them; all (k,).

    Move p takes the item that stands at `place[p]` of the order to `option[p]`, which costs `more[p]` and loses `lost[p]`.
    Of the items after it, `up[p]` is the most loss that a unit of cost can save, `down[p]` the least that saving one can take.
    """

    place: Ints
    option: Ints
    more: Ints
    lost: Ints
    up: Floats
    down: Floats

    @classmethod
    def of(cls, core: _Core, alternatives: Bools, items: Ints, up: Floats, down: Floats) -> _Moves:
        """All of `alternatives`, by the order of `items`, whose own slopes `up` and `down` are."""
        place, option = np.nonzero(alternatives[items])
        up_after = np.append(np.maximum.accumulate(up[::-1])[::-1], 0.0)[1:] * (1 + SAFE)
        down_after = np.append(np.minimum.accumulate(down[::-1])[::-1], np.inf)[1:] * (1 - SAFE)
        item = items[place]
        return cls(place, option, core.more[item, option], core.lost[item, option], up_after[place], down_after[place])

    def among(self, alternatives: Bools, items: Ints) -> _Moves:
        """Those that are still alternatives."""
        kept = alternatives[items[self.place], self.option]
        return _Moves(*(getattr(self, name)[kept] for name in self.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class _States:
    """Undominated states by rising `more` and falling `lost`; both (k,)."""

    more: Ints
    lost: Ints

    def moved(self, more: Ints, lost: Ints) -> _States:
        """Every state after each of some moves, (moves, k), in no order."""
        return _States(np.add.outer(more, self.more), np.add.outer(lost, self.lost))

    def promise(self, slack: int, up: Floats, down: Floats) -> Floats:
        """The most that what is left may save at `up` a unit, or what is overdrawn must lose, at `down`, to be won back."""
        left = slack - self.more
        return np.asarray(np.where(left >= 0, up, down) * left)

    def first_new(self, moves: _Moves, begin: int, slack: int, best: int) -> int:
        """The first of `moves`, from number `begin` on, that leads from one of the states to a new one that is worth a look:
        neither dominated by these nor too poor for its promise. The number of all moves when there is none."""
        if len(self.more) > FIRST_CHUNK:
            return begin  # so many lead somewhere
        number, chunk = begin, FIRST_CHUNK
        while number < len(moves.place):
            part = slice(number, number + max(1, chunk // len(self.more)))
            reached = self.moved(moves.more[part], moves.lost[part])
            promise = reached.promise(slack, moves.up[part, None], moves.down[part, None])
            move, state = (promise >= reached.lost - (best - 1)).nonzero()
            if len(move):
                below = self.more.searchsorted(reached.more[move, state], side="right") - 1
                new = ((below < 0) | (reached.lost[move, state] < self.lost[below])).nonzero()[0]
                if len(new):
                    return number + int(move[new[0]])
            number, chunk = part.stop, min(2 * chunk, LARGEST_CHUNK)
        return len(moves.place)


def _sweep(core: _Core, choice: Ints, width: int, deadline: float) -> tuple[Ints, bool]:
    """Look at the core's items in order. Returns the best choice, `choice` if nothing loses less, and whether none can.

    An item is passed over when none of its moves leads to a new state worth a look."""
    best = int(core.lost[np.arange(len(choice)), choice].sum())
    wide, core = core, core.tightened(best)
    alternatives = core.alternatives(best)
    if not alternatives.any():
        return choice, True
    items, ups, downs = wide.order(wide.alternatives(best))
    moves = _Moves.of(core, alternatives, items, ups, downs)
    states, promise = _States(*np.zeros((2, 1), dtype=np.int64)), np.zeros(1)
    layers: list[Layer] = []
    found: tuple[int, int] | None = None  # (layers, state) of the best choice, once one beats `choice`
    looked_at, number, complete = 0, 0, True
    while (number := states.first_new(moves, number, core.slack, best)) < len(moves.place):
        if time.perf_counter() >= deadline or looked_at > STATES_LIMIT:
            complete = False
            break
        place, up, down = moves.place[number], moves.up[number], moves.down[number]
        first, following = moves.place.searchsorted([place, place + 1])
        item, others = int(items[place]), moves.option[first:following]
        options = np.append(core.base[item], others)
        before = len(states.more)
        reached = states.moved(core.more[item, options], core.lost[item, options])
        promise_before, promise = promise, reached.promise(core.slack, up, down)
        useful = promise >= reached.lost - (best - 1)
        if before * len(options) > width:
            complete = False
            if best + core.room <= NOISE:
                break
            by_promise = np.lexsort((np.abs(core.slack - states.more), states.lost - promise_before))
            useful[:, by_promise[max(1, width // len(options)) :]] = False
        more, lost = reached.more.ravel(), reached.lost.ravel()
        origin = _undominated(useful.ravel().nonzero()[0], more, lost)
        states, promise = _States(more[origin], lost[origin]), promise.ravel()[origin]
        layers.append(Layer(item, options, before, origin))
        looked_at += len(origin)
        last = int(states.more.searchsorted(core.slack, side="right")) - 1
        number = int(following)
        if last >= 0 and states.lost[last] < best:
            best, found = int(states.lost[last]), (len(layers), last)
            moves = moves.among(core.alternatives(best), items)
            number = int(moves.place.searchsorted(place, side="right"))
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
