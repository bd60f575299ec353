"""The frontier of one resource: the best loss for every budget on the lower convex hull (Shoham and Gersho 1988).

Each item has its own hull of (cost, loss) points; going down it, the loss saved for each unit of cost (the *slope*)
falls. Taking the steps of all items in the order of falling slope visits every vertex of the hull of all n-fold
choices, from the cheapest choice to the one of least loss, for every budget at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .arrays import Bools, Floats, Ints
from .certificate import scaled
from .problem import ChoiceProblem

CHUNK = 2**16  # entries of a table looked at together: a few such arrays of 8 bytes fit a processor's cache


@dataclass(frozen=True, eq=False)
class HullSteps:
    """`start` (n,): the cheapest option of each item. Step k moves `item[k]` to `option[k]`, which costs `cost[k]` more
    and saves `saved[k]` of (integer) loss; `slope` = saved / cost, falling; all (k,).
    """

    start: Ints
    item: Ints
    option: Ints
    cost: Ints
    saved: Ints
    slope: Floats

    def choice_after(self, steps: int) -> Ints:
        """The choice (n,) after that many steps: of each item, the option it was moved to last."""
        choice = self.start.copy()
        choice[self.item[:steps]] = self.option[:steps]  # on repeated items, numpy keeps the last
        return choice


@dataclass(frozen=True)
class Step:
    """One move along a frontier: `item` goes from `from_option` to `to_option`.

    That costs `cost` more (less, where negative) and saves `saved` of the loss (adds to it, where negative); `slope` =
    saved / cost >= 0 is the loss saved, or added, by a unit of cost.
    """

    item: int
    from_option: int
    to_option: int
    cost: int
    saved: float
    slope: float


@dataclass(frozen=True, eq=False)
class Frontier:
    """Vertex k costs `budgets[k]`, rising, and loses `losses[k]`, falling; all (k,).

    `multipliers[k]` is the shadow price there: the loss that the next unit of cost saves, on the way to vertex k + 1;
    zero at the last. Between vertices the straight line is a lower bound for the best loss. `steps` counts losses in
    units of 1 / `scale`.
    """

    budgets: Ints
    losses: Floats
    multipliers: Floats
    steps: HullSteps
    scale: int

    def lookup(self, limit: int) -> int:
        """Index of the last vertex within `limit`. Raises ValueError, saying the least cost, when there is none."""
        vertex = int(np.searchsorted(self.budgets, limit, side="right")) - 1
        if vertex < 0:
            raise ValueError(f"a limit of {limit} is below the least total cost, {int(self.budgets[0])}")
        return vertex

    def choice(self, vertex: int) -> Ints:
        """The choice (n,) at a vertex."""
        return self.steps.choice_after(range(len(self.budgets))[vertex])

    def step_up(self, vertex: int) -> Step | None:
        """What a larger budget buys first: the move from a vertex to the next one; None at the last."""
        vertex = range(len(self.budgets))[vertex]
        return None if vertex == len(self.budgets) - 1 else self._step(vertex)

    def step_down(self, vertex: int) -> Step | None:
        """What a smaller budget costs first: the move from a vertex back to the one before it; None at the first."""
        vertex = range(len(self.budgets))[vertex]
        if vertex == 0:
            return None
        up = self._step(vertex - 1)
        return replace(up, from_option=up.to_option, to_option=up.from_option, cost=-up.cost, saved=-up.saved)

    def shadow_price(self, limit: int, per: int = 1) -> float:
        """The loss that `per` more units of cost save at a limit (2**20: a MiB, where a unit is a byte); see `multipliers`.

        It is a rate: the next move may cost more than `per`. Raises ValueError when nothing fits the limit.
        """
        return float(self.multipliers[self.lookup(limit)]) * per

    def _step(self, number: int) -> Step:
        """Step `number`, from vertex `number` to the next."""
        steps, item = self.steps, int(self.steps.item[number])
        earlier = np.flatnonzero(steps.item[:number] == item)
        before = steps.option[earlier[-1]] if len(earlier) else steps.start[item]
        saved, slope = int(steps.saved[number]) / self.scale, float(self.multipliers[number])
        return Step(item, int(before), int(steps.option[number]), int(steps.cost[number]), saved, slope)


def frontier(problem: ChoiceProblem) -> Frontier:
    """Every vertex of the lower hull, from the cheapest choice to the least loss; the problem's own limit plays no part.

    Raises ValueError when there is more than one resource, a floor, or a rule.
    """
    if problem.resources != 1:
        raise ValueError(f"a frontier is drawn over one resource, and this problem has {problem.resources}")
    if not problem.plain:
        raise ValueError("a frontier is drawn where nothing but the limit constrains the choice; leave out floor and rules")
    tables = scaled(problem)
    steps = hull_steps(tables.loss, tables.cost[0], tables.allowed)
    rows = np.arange(problem.items)
    budgets = np.append(tables.cost[0, rows, steps.start].sum(), steps.cost).cumsum()
    losses = np.append(tables.loss[rows, steps.start].sum(), -steps.saved).cumsum() / tables.scale
    return Frontier(budgets, losses, np.append(steps.slope / tables.scale, 0.0), steps, tables.scale)


def hull_steps(loss: Ints, cost: Ints, allowed: Bools) -> HullSteps:
    """The steps of all items along their lower hulls, by falling slope; tables (n, m).

    Gift wrapping: from where an item stands, its next hull point is the option with the largest slope (the nearest of
    equals, so that points on an edge count), and at most m - 1 rounds over the table find all. Slopes are float64: an
    option within rounding of an edge may be missed or kept, which a user must bear (`hull.relax` does). The table is
    looked at in chunks of items that stay in the processor's cache: two to three times as fast as in one go.
    """
    chunk = max(1, CHUNK // loss.shape[1])
    starts: list[Ints] = []
    rounds: list[list[_Round]] = []
    for first in range(0, len(loss), chunk):
        part = slice(first, first + chunk)
        start, wrapped = _wrapped(loss[part], cost[part], allowed[part])
        starts.append(start)
        for number, found in enumerate(wrapped):
            if number == len(rounds):
                rounds.append([])
            rounds[number].append(replace(found, item=found.item + first))
    found_in_order = [found for parts in rounds for found in parts] or [_Round.empty()]
    slopes = np.concatenate([found.slope for found in found_in_order])
    order = _falling(slopes)
    item, option, step_cost, step_saved = (
        np.concatenate([getattr(found, name) for found in found_in_order])[order] for name in ("item", "option", "cost", "saved")
    )
    return HullSteps(np.concatenate(starts), item, option, step_cost, step_saved, slopes[order])


@dataclass(frozen=True, eq=False)
class _Round:
    """The next step of every item that has one; all (k,), with the names of HullSteps."""

    item: Ints
    option: Ints
    cost: Ints
    saved: Ints
    slope: Floats

    @classmethod
    def empty(cls) -> _Round:
        nothing = np.zeros(0, dtype=np.int64)
        return cls(nothing, nothing, nothing, nothing, np.zeros(0))


def _wrapped(loss: Ints, cost: Ints, allowed: Bools) -> tuple[Ints, list[_Round]]:
    """`HullSteps.start` of a few items, and their steps, round after round.

    With options in the order of rising cost an item stands at option r or beyond it after r rounds, so that round needs to
    look at the options after r only; and the nearest of equal slopes is the first.
    """
    largest = np.iinfo(np.int64).max
    # Options down, items across: every operation runs along memory. What is not allowed costs most and loses most.
    cost, loss = (np.ascontiguousarray(np.where(allowed, table, far).T) for table, far in ((cost, largest), (loss, largest // 2)))
    sorting: Ints | None = None
    if np.any(cost[1:] < cost[:-1]):
        sorting = np.argsort(cost, axis=0, kind="stable")
        cost, loss = np.take_along_axis(cost, sorting, axis=0), np.take_along_axis(loss, sorting, axis=0)
    items = across = np.arange(cost.shape[1])
    at = np.where(cost == cost[0], loss, largest).argmin(axis=0)
    start = at if sorting is None else sorting[at, items]
    cost_at, loss_at, bar = cost[at, items], loss[at, items], np.full(len(items), np.inf)
    rounds: list[_Round] = []
    for number in range(1, len(cost)):
        cost, loss = cost[1:], loss[1:]
        more, saved = cost - cost_at, loss_at - loss
        ahead = (more > 0) & (saved > 0)
        slope = saved / more if ahead.all() else np.divide(saved, more, out=np.zeros(more.shape), where=ahead)
        to = slope.argmax(axis=0)
        # A slope that rounding lifts above the one before it would let an item take its steps in the wrong order.
        bar = np.minimum(bar, slope[to, across])
        on = np.flatnonzero(bar)
        if not len(on):
            break
        if len(on) < len(items):
            items, to, bar, across = items[on], to[on], bar[on], np.arange(len(on))
            cost, loss, more, saved = cost[:, on], loss[:, on], more[:, on], saved[:, on]
        option = to + number if sorting is None else sorting[to + number, items]
        rounds.append(_Round(items, option, more[to, across], saved[to, across], bar))
        cost_at, loss_at = cost[to, across], loss[to, across]
    return start, rounds


def _falling(slopes: Floats) -> Ints:
    """The order of falling slope; of equals, the earlier comes first, so that an item's steps stay in their order.

    numpy's stable sort takes three times as long as its quick one, so equals are put right afterwards.
    """
    order = np.argsort(-slopes)
    if not len(order):
        return order
    falls = np.diff(slopes[order]) != 0
    tied = ~(np.append(True, falls) & np.append(falls, True))
    run = np.append(0, np.cumsum(falls))
    order[tied] = np.sort(run[tied] * len(order) + order[tied]) % len(order)
    return order
