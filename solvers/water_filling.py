"""Reverse water-filling: closed forms for the law  loss = C 2^(-slope b): reverse water-filling, and what BAQ makes of it.

    minimise sum_i C_i 2^(-slope b_i)    subject to    sum_i p_i b_i <= B,    floor_i <= b_i <= cap_i

With a water level t, every item whose bits are free loses the same for each unit of weight (the equal-loss structure of
BAQ, arXiv 2506.05664; Q-Palette, arXiv 2509.20214, Theorem 3.1, has it for matrices; Gaussian sources: Shannon 1959):

    b_i = clip( log2(C_i / (p_i t)) / slope, floor_i, cap_i )

These are the conditions of Karush, Kuhn and Tucker: C_i 2^(-slope b_i) / p_i is t where the bits are free, at most t at a
floor, and at least t at a cap. What is spent is piecewise linear in log2 t, and bends where an item leaves its floor or
meets its cap. A search among the sorted bends finds the straight piece on which the budget lands, and one division the
level on it: no iteration and no tolerance, O(n log n).

A slope of its own for each item needs no other formula: take s_i b_i for the bits and p_i / s_i for the weights.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .arrays import Bools, Floats, Ints

ROUNDING = 1e-12  # relative: more than the rounding of the sums here, less than any bit or budget that is meant
THETA = 1.95  # BAQ's slope of log2 loss against bits, as measured by its authors


@dataclass(frozen=True, eq=False)
class WaterFilling:
    """`bits` and `losses` (n,), real-valued, and the water `level`: loss per unit of weight where the bits are free.

    The level is 0 where every item has its cap and budget is left, and infinity where every item may stay on its floor.
    """

    bits: Floats
    losses: Floats
    level: float
    slope: float

    @property
    def price(self) -> float:
        """Loss that the next unit of budget saves: slope ln(2) level, the multiplier of the budget."""
        return self.slope * math.log(2) * self.level


def reverse_water_filling(
    coefficient: npt.ArrayLike,
    weights: npt.ArrayLike,
    budget: float,
    *,
    slope: float = 2.0,
    floor: npt.ArrayLike = 0.0,
    cap: npt.ArrayLike = math.inf,
) -> WaterFilling:
    """The bits that minimise the programme at the top of this file; they spend the budget, to rounding, or meet all caps.

    `coefficient` C (n,) >= 0, `weights` p (n,) > 0, `floor` and `cap` (n,) or one for all; a floor may be -infinity, a cap
    infinity. An item with C = 0 stays on its floor.

    Raises ValueError when the numbers are not so, or the floors alone cost more than the budget (it says how much).
    """
    items = _Items.of(coefficient, weights, slope, floor, cap)
    return items.filled(_level_within(items, budget))


def _level_within(items: _Items, budget: float) -> float:
    """The logarithm of the water level for a budget."""
    least, most = items.spent(items.at(math.inf)), items.spent(items.at(-math.inf))
    if least > budget + ROUNDING * abs(budget):
        raise ValueError(f"the floors alone cost {least}, more than the budget of {budget}")
    if budget >= most or least == most:
        return -math.inf
    lower, upper = items.piece(lambda level: items.spent(items.at(level)) <= budget)
    free, fixed = items.free(lower, upper), items.at(upper)
    goal = budget - items.spent(np.where(free, 0.0, fixed))
    weight = math.fsum(items.weights[free].tolist())
    if not weight:  # by rounding alone: the budget lies on a bend
        return upper
    height = math.fsum((items.weights * items.height)[free].tolist())
    return min(max((height - items.slope * goal) / weight, lower), upper)


def bits_for_loss(
    coefficient: npt.ArrayLike,
    total: float,
    *,
    weights: npt.ArrayLike = 1.0,
    slope: float = 2.0,
    floor: npt.ArrayLike = 0.0,
    cap: npt.ArrayLike = math.inf,
) -> WaterFilling:
    """The other way round: the least  sum_i p_i b_i  for which  sum_i C_i 2^(-slope b_i) <= total.

    For independent Gaussian sources of variances C and p = 1: sources above the water level lose the level, the others are
    not coded and lose their variance. Arguments as in `reverse_water_filling`.

    Raises ValueError when the numbers are not so, or no bits within the caps lose so little (it says how much they lose).
    """
    items = _Items.of(coefficient, weights, slope, floor, cap)
    most = items.lost(items.at(math.inf))
    least = items.lost(items.at(-math.inf))
    if total < least - ROUNDING * least or (total <= least and np.isinf(items.cap[items.coefficient > 0]).any()):
        raise ValueError(f"bits within the caps lose more than {least}, and a total of {total} is asked for")
    if total >= most:
        return items.filled(math.inf)
    lower, upper = items.piece(lambda level: items.lost(items.at(level)) >= total)
    free, fixed = items.free(lower, upper), items.at(upper)
    left = total - math.fsum(items.losses(fixed)[~free].tolist())
    weight = math.fsum(items.weights[free].tolist())
    if not weight or left <= 0:  # by rounding alone: the total lies on a bend
        return items.filled(upper if not weight else lower)
    return items.filled(min(max(math.log2(left / weight), lower), upper))


def round_to_budget(
    coefficient: npt.ArrayLike,
    weights: npt.ArrayLike,
    budget: float,
    *,
    slope: float = 2.0,
    floor: npt.ArrayLike = 0.0,
    cap: npt.ArrayLike = math.inf,
) -> Ints:
    """Whole bits (n,) within the budget: one bit at a time to the item that gains most for its weight and still fits.

    Equal weights: no whole bits lose less (separable convex resource allocation; Fox 1966, Gross 1956). Other weights:
    near, and a `ChoiceProblem` with the costs in whole units can be solved to the end. Floors and caps are whole
    numbers. Weights and budgets that are whole, and below 2^53, are added up without rounding. The bits below the water
    level are the first that giving one at a time gives, so only the last of them, fewer than n or so, are given so.

    Raises ValueError as `reverse_water_filling` does, and for floors or caps that are not whole.
    """
    items = _Items.of(coefficient, weights, slope, floor, cap)
    for name, bound in (("floor", items.floor), ("cap", items.cap)):
        if not np.array_equal(bound, np.floor(bound)) or np.any(bound == -math.inf):
            raise ValueError(f"whole bits need a {name} of whole numbers, not {bound.tolist()}")
    # From a level a little higher, so that no bit is given that rounding alone lifted to a whole number.
    bits = np.floor(items.at(_level_within(items, budget) + 1e-9)).astype(np.int64)
    left = budget - items.spent(bits.astype(np.float64))
    gain = items.losses(bits.astype(np.float64)) * (1 - 2.0**-slope) / items.weights
    waiting = [(-gain[item], item) for item in np.flatnonzero((bits < items.cap) & (gain > 0)).tolist()]
    heapq.heapify(waiting)
    while waiting:
        gained, item = heapq.heappop(waiting)
        if items.weights[item] > left:
            continue  # what does not fit now never will
        bits[item] += 1
        left -= float(items.weights[item])
        if bits[item] < items.cap[item]:
            heapq.heappush(waiting, (gained * 2.0**-slope, item))
    return bits


@dataclass(frozen=True, eq=False)
class Levels:
    """`levels` (n,) >= 1 of each column's grid, and `bits` (n,) = log2(levels), which are seldom whole numbers."""

    levels: Ints
    bits: Floats


def baq_levels(losses: npt.ArrayLike, bits: float, *, theta: float = THETA) -> Levels:
    """The rule of BAQ's released code (arXiv 2506.05664): a whole number of levels, not of bits, for each column.

        levels_j = max(1, round( (losses_j / GM 2^(theta bits))^(1/theta) )),    GM = the geometric mean of losses + 1e-8

    `losses` (n,) >= 0 are measured with 2^bits levels in every column. Halves are rounded to even. Nothing is repaired
    after rounding: the mean of the bits is near `bits` and may exceed it (losses 16, 4, 1, 1/4 at 3 bits take 3.038).
    One level dequantizes to zero; beyond about 10 bits the released quantizer breaks, so clamp them. A format that
    stores whole bits wants `round_to_budget`.

    Raises ValueError for losses that are negative or not finite.
    """
    measured = np.asarray(losses, dtype=np.float64)
    if measured.ndim != 1 or not len(measured) or not np.isfinite(measured).all() or np.any(measured < 0):
        raise ValueError("losses must be a list of finite numbers >= 0, at least one")
    mean = math.exp(math.fsum(np.log(measured + 1e-8).tolist()) / len(measured))
    levels = np.maximum(1.0, np.rint((measured / mean * 2.0 ** (theta * bits)) ** (1 / theta)))
    return Levels(levels.astype(np.int64), np.log2(levels))


@dataclass(frozen=True, eq=False)
class _Items:
    """What is given, checked; `height` (n,) = log2(C / p). Levels are told as their logarithms to base 2."""

    coefficient: Floats
    weights: Floats
    slope: float
    floor: Floats
    cap: Floats
    height: Floats

    @classmethod
    def of(
        cls, coefficient: npt.ArrayLike, weights: npt.ArrayLike, slope: float, floor: npt.ArrayLike, cap: npt.ArrayLike
    ) -> _Items:
        c = np.asarray(coefficient, dtype=np.float64)
        if c.ndim != 1 or not len(c) or not np.isfinite(c).all() or np.any(c < 0):
            raise ValueError("coefficient must be a list of finite numbers >= 0, at least one")
        p, least, most = (np.broadcast_to(np.asarray(given, dtype=np.float64), c.shape) for given in (weights, floor, cap))
        if not np.isfinite(p).all() or np.any(p <= 0):
            raise ValueError("weights must be finite and > 0; leave out an item that weighs nothing")
        if not (math.isfinite(slope) and slope > 0):
            raise ValueError(f"slope must be finite and > 0, not {slope}")
        if not np.all((least <= most) & (least < math.inf) & (most > -math.inf)):
            item = int((~((least <= most) & (least < math.inf) & (most > -math.inf))).argmax())
            raise ValueError(f"the floor of item {item}, {least[item]}, must not exceed its cap, {most[item]}")
        if np.any((c == 0) & (least == -math.inf)):
            raise ValueError("an item with a coefficient of zero needs a finite floor")
        height = np.log2(c, out=np.full(c.shape, -math.inf), where=c > 0) - np.log2(p)
        return cls(c, p, slope, least, most, height)

    def at(self, level: float) -> Floats:
        """The bits (n,) at a level."""
        lost = self.coefficient > 0
        free = np.subtract(self.height, level, out=np.full(len(lost), -math.inf), where=lost) / self.slope
        bits: Floats = np.clip(free, self.floor, self.cap)
        return bits

    def losses(self, bits: Floats) -> Floats:
        lost: Floats = self.coefficient * np.exp2(-self.slope * bits)
        return lost

    def spent(self, bits: Floats) -> float:
        return math.fsum((self.weights * bits).tolist())

    def lost(self, bits: Floats) -> float:
        return math.fsum(self.losses(bits).tolist())

    def bends(self) -> tuple[Floats, Floats]:
        """The levels (n,) at which each item meets its cap and its floor."""
        return self.height - self.slope * self.cap, self.height - self.slope * self.floor

    def piece(self, beyond: Callable[[float], bool]) -> tuple[float, float]:
        """The straight piece on which the answer lies: `beyond` holds at its upper end and not at its lower one."""
        bends = np.concatenate(self.bends())
        levels = np.unique(bends[np.isfinite(bends)]).tolist()
        upper = bisect.bisect_left(levels, True, key=beyond)
        return (levels[upper - 1] if upper else -math.inf), (levels[upper] if upper < len(levels) else math.inf)

    def free(self, lower: float, upper: float) -> Bools:
        """Which items (n,) lie between floor and cap all along a piece."""
        at_cap, at_floor = self.bends()
        free: Bools = (at_cap <= lower) & (at_floor >= upper) & (self.coefficient > 0)
        return free

    def filled(self, level: float) -> WaterFilling:
        bits = self.at(level)
        with np.errstate(over="ignore"):
            return WaterFilling(bits, self.losses(bits), float(np.exp2(level)), self.slope)
