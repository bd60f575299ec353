"""Real-valued bits under several resources, for any convex law of loss against bits, with a bound of our own.

    minimise sum_i C_i 2^(-s_i b_i)    subject to    A b <= B,    floor <= b <= cap

for resources A (r, n) >= 0: a convex programme over exponential cones. For prices lambda >= 0 of the resources every item
minimises for itself, in closed form, C_i 2^(-s_i b) + q_i b with q = lambda A, at

    b = clip( log2(C_i s_i ln2 / q_i) / s_i, floor_i, cap_i )

and the sum of the minima less lambda B is a lower bound on every loss (Lagrangian duality; Boyd and Vandenberghe 2004, section
5.1). It is added up here from the prices alone, so no solver needs to be trusted: one that errs gives a wider gap.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .arrays import Bools, Floats
from .cvx import Outcome, cvxpy_module, run
from .water_filling import reverse_water_filling


@dataclass(frozen=True, eq=False)
class RateDistortion:
    """`bits` (n,) that keep floors and caps, what they use, `spent` (r,) = A b, within B to rounding, and their `loss`.

    `multipliers` (r,): the loss that the next unit of each resource saves. `lower_bound`: no bits within B lose less, by
    the multipliers alone, to rounding. `outcome`: "solved" or "inaccurate", by Clarabel; "stopped" where it gave nothing
    in time, and all here comes from one water level over the resources taken together.
    """

    bits: Floats
    multipliers: Floats
    loss: float
    lower_bound: float
    spent: Floats
    outcome: Outcome

    @property
    def gap(self) -> float:
        """By how much a smaller loss could be smaller, at most."""
        return self.loss - self.lower_bound


def rate_distortion(
    coefficient: npt.ArrayLike,
    slope: npt.ArrayLike,
    usage: npt.ArrayLike,
    budget: npt.ArrayLike,
    *,
    floor: npt.ArrayLike = 0.0,
    cap: npt.ArrayLike = math.inf,
    time_limit: float | None = None,
) -> RateDistortion:
    """The programme at the top of this file: real-valued bits within several linear resources, with a bound.

    `coefficient` C (n,) >= 0, `slope` s > 0, `floor` (finite) and `cap` (n,) or one for all, `usage` A (r, n) >= 0 of a bit,
    `budget` B (r,). Each item needs a cap or a resource that it uses.

    Raises ValueError when the numbers are not so, or when the floors alone break a budget (it says which and by how much).
    """
    deadline = math.inf if time_limit is None else time.perf_counter() + time_limit
    model = _Model.of(coefficient, slope, usage, budget, floor, cap)
    multipliers, start = model.together()
    found: list[tuple[Floats, Floats]] = [(start, multipliers)]
    outcome: Outcome = "solved"
    if model.free.any() and model.binding.any():
        outcome, solved = model.solved(start, deadline)
        found += solved
    points = [model.within(point) for bits, prices in found for point in (bits, model.minimiser(prices))]
    bits = min(points, key=model.loss)
    prices = max((prices for _, prices in found), key=model.bound)
    return RateDistortion(bits, prices, model.loss(bits), model.bound(prices), model.usage @ bits, outcome)


@dataclass(frozen=True, eq=False)
class _Model:
    """What is given, checked. `room` (r,) is what the floors leave. `free` (n,): items whose bits are to be found; `binding`
    (r,): resources with room for less than all caps. A resource without room keeps its items on their floors."""

    coefficient: Floats
    slope: Floats
    usage: Floats
    budget: Floats
    floor: Floats
    cap: Floats
    room: Floats
    free: Bools
    binding: Bools

    @classmethod
    def of(cls, *given: npt.ArrayLike) -> _Model:
        arrays: list[Floats] = [np.asarray(array, dtype=np.float64) for array in given]
        c, _, usage, budget = arrays[:4]
        if c.ndim != 1 or not len(c) or usage.shape != (*budget.shape, *c.shape) or budget.ndim != 1:
            raise ValueError(
                f"coefficient (n,), usage (r, n) and budget (r,) do not fit together: {c.shape}, {usage.shape}, {budget.shape}"
            )
        slope, floor, cap = (np.broadcast_to(array, c.shape) for array in (arrays[1], arrays[4], arrays[5]))
        for name, array, above in (("coefficient", c, c >= 0), ("slope", slope, slope > 0), ("usage", usage, usage >= 0)):
            if not (np.isfinite(array) & above).all():
                raise ValueError(f"{name} must be finite and {'> 0' if name == 'slope' else '>= 0'}")
        if not np.isfinite(budget).all() or not np.isfinite(floor).all() or not np.all(floor <= cap):
            raise ValueError("budget and floor must be finite, and no floor above its cap")
        room = budget - usage @ floor
        for resource in np.flatnonzero(room < -1e-12 * np.abs(budget)).tolist():
            raise ValueError(f"the floors alone use {-room[resource]} more of resource {resource} than its budget")
        room = np.maximum(0.0, room)
        used = usage > 0
        endless = ~used.any(axis=0) & np.isinf(cap) & (c > 0)
        if endless.any():
            raise ValueError(f"item {int(endless.argmax())} uses no resource and has no cap; give it one")
        free = (c > 0) & (cap > floor) & used.any(axis=0) & ~used[room == 0].any(axis=0)
        span = np.where(free, cap - floor, 0.0)
        with np.errstate(invalid="ignore"):  # 0 * infinity is no use at all
            most = np.nansum(usage * span, axis=1)
        return cls(c, slope, usage, budget, floor, cap, room, free, (room > 0) & (most > room))

    def loss(self, bits: Floats) -> float:
        return math.fsum((self.coefficient * np.exp2(-self.slope * bits)).tolist())

    def minimiser(self, prices: Floats) -> Floats:
        """The bits (n,) that minimise loss + prices A b, in closed form."""
        price = prices @ self.usage
        steepness = self.coefficient * self.slope * math.log(2)
        with np.errstate(divide="ignore", invalid="ignore"):
            bits = np.log2(steepness / price) / self.slope
        bits = np.where(steepness == 0, self.floor, np.where(price == 0, self.cap, bits))
        clipped: Floats = np.clip(bits, self.floor, self.cap)
        return clipped

    def bound(self, prices: Floats) -> float:
        """The least of loss + prices (A b - B) over floors and caps: a lower bound for every prices (r,) >= 0."""
        bits = self.minimiser(prices)
        price = prices @ self.usage
        # Told from the floors, so that a high price of a resource without room cancels before it is rounded.
        paid = price * np.where(price > 0, bits - self.floor, 0.0)
        return math.fsum([self.loss(bits), *paid.tolist(), *(-prices * self.room).tolist()])

    def within(self, bits: Floats) -> Floats:
        """Bits drawn towards the floors until they keep every budget."""
        inside = np.clip(bits, self.floor, self.reach)
        spent = self.usage @ (inside - self.floor)
        share = min(1.0, float((self.room[spent > 0] / spent[spent > 0]).min(initial=1.0)))
        drawn: Floats = self.floor + share * (inside - self.floor)
        return drawn

    @property
    def reach(self) -> Floats:
        """The most bits (n,) that an item can have: its cap, or what the room holds if all others stay on their floors."""
        with np.errstate(divide="ignore", invalid="ignore"):
            most = np.where(self.usage > 0, self.room[:, None] / self.usage, np.inf).min(axis=0, initial=np.inf)
        reach: Floats = np.minimum(self.cap, self.floor + most)
        return reach

    def shut_prices(self) -> Floats:
        """Prices (r,) of the resources without room, so high that no item that uses one wants to leave its floor."""
        steepness = self.coefficient * self.slope * math.log(2) * np.exp2(-self.slope * self.floor)
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = np.where(self.usage > 0, steepness / self.usage, 0.0).max(axis=1)
        return np.where(self.room == 0, wanted, 0.0)

    def together(self) -> tuple[Floats, Floats]:
        """Prices and bits of one water level over all resources, each measured in its room: near, and in closed form."""
        prices, bits = self.shut_prices(), np.where(self.coefficient > 0, self.reach, self.floor)
        free, binding = self.free, self.binding
        if free.any() and binding.any():
            weight = (self.usage[binding] / self.room[binding, None]).sum(axis=0)
            free = free & (weight > 0)
            slope = self.slope[free]
            filling = reverse_water_filling(
                self.coefficient[free] * np.exp2(-slope * self.floor[free]),
                weight[free] / slope,
                float(binding.sum()),
                slope=1.0,
                cap=slope * (self.cap - self.floor)[free],
            )
            bits[free] = self.floor[free] + filling.bits / slope
            prices[binding] = filling.price / self.room[binding]
        return prices, bits

    def solved(self, start: Floats, deadline: float) -> tuple[Outcome, list[tuple[Floats, Floats]]]:
        """Clarabel's bits and prices. Its variables are halvings of the loss relative to `start`, drawn within the budgets."""
        cvxpy = cvxpy_module()
        start = self.within(start)
        free, binding = self.free & (self.usage[self.binding] > 0).any(axis=0), self.binding
        slope, at = self.slope[free], start[free]
        loss = self.coefficient[free] * np.exp2(-slope * at)
        unit = float(loss.sum())
        halvings = cvxpy.Variable(int(free.sum()))
        usage = self.usage[binding][:, free] / self.room[binding, None]
        within = (usage / slope) @ halvings <= 1 - usage @ (at - self.floor[free])
        cap = slope * (self.cap[free] - at)
        capped = np.isfinite(cap)
        constraints = [within, halvings >= slope * (self.floor[free] - at)]
        constraints += [halvings[capped] <= cap[capped]] if capped.any() else []
        lost = cvxpy.sum(cvxpy.multiply(loss / unit, cvxpy.exp(-math.log(2) * halvings)))
        outcome = run(cvxpy.Problem(cvxpy.Minimize(lost), constraints), "CLARABEL", deadline)
        if outcome not in ("solved", "inaccurate") or halvings.value is None or within.dual_value is None:
            return "stopped", []
        bits, prices = start.copy(), self.shut_prices()
        bits[free] = at + halvings.value / slope
        prices[binding] = np.maximum(0.0, np.atleast_1d(within.dual_value)) * unit / self.room[binding]
        return outcome, [(bits, prices)]
