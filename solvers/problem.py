"""The choice problem (multiple-choice knapsack) and what an answer to it is.

    pick one allowed option x_i for each of n items
    minimise    sum_i loss[i, x_i]
    subject to  sum_i cost[r, i, x_i] <= limit[r]        for each of the resources r

Nothing here has a unit of measure: an item may be a layer, an expert or a page of a catalogue.
"""

from __future__ import annotations

import enum
import math
import time
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Proof = Literal["multipliers", "search", "bound"]

TOTAL_BITS = 60  # totals of losses and of costs stay below 2^60, so that 64-bit integers add them without overflow
BRUTE_FORCE_LIMIT = 2**21


class Status(enum.Enum):
    """What is known about an answer; the value is the sentence a person reads."""

    OPTIMAL = "no choice within the limits has a smaller loss"
    FEASIBLE = "the choice keeps the limits; its gap says how much smaller a loss could be at most"
    INFEASIBLE = "no choice keeps the limits; the smallest limits that would do are stated"
    LIMIT = "stopped before the search was complete; the choice, where there is one, is the best found"


@dataclass(frozen=True, eq=False)
class ChoiceProblem:
    """Tables and limits; see the programme at the top of this file.

    `loss` (n, m) float64, finite where allowed. `cost` (r, n, m) whole numbers >= 0, `limit` (r,) whole numbers.
    `allowed` (n, m) bool, at least one option in each row. Entries that are not allowed are never read, whatever they
    hold. The arrays are copied and made read-only.

    Raises ValueError, naming the table and the remedy, when they are not so.
    """

    loss: Floats
    cost: Ints
    limit: Ints
    allowed: Bools

    def __post_init__(self) -> None:
        for name, table in zip(("loss", "cost", "limit", "allowed"), _checked(self), strict=True):
            table.setflags(write=False)
            object.__setattr__(self, name, table)

    @property
    def items(self) -> int:
        return len(self.loss)

    @property
    def resources(self) -> int:
        return len(self.limit)


@dataclass(frozen=True)
class Certificate:
    """Evidence that no choice has a loss below `lower_bound`, checkable from the tables alone (`certificate.certify`).

    `multipliers` (one a resource) are prices: scaled loss a unit of cost. `lower_bound` and `gap` (loss of the choice
    minus lower bound) are exact, in scaled losses: the integers round(loss * loss_scale).
    """

    multipliers: tuple[Fraction, ...]
    lower_bound: Fraction
    gap: Fraction
    loss_scale: int


@dataclass(frozen=True, eq=False)
class Solution:
    """An answer. `loss` and `cost` are added up from the tables; without a choice they are infinity and zeros.

    `proof` says why nothing better exists: `multipliers` (the certificate's gap is zero), `search` (an exact search,
    over the integer losses of the certificate, closed what the multipliers leave open), or `bound` (no more is claimed
    than the gap). When infeasible, `smallest_limit[r]` is the smallest limit of resource r that would do with the
    other limits as they are, or, where the other limits alone rule out every choice, the least total of r.
    """

    choice: Ints | None
    loss: float
    cost: Ints
    status: Status
    certificate: Certificate | None
    solver: str
    seconds: float
    proof: Proof
    smallest_limit: tuple[int, ...] | None = None


def recompute(problem: ChoiceProblem, choice: Ints) -> tuple[float, Ints]:
    """Loss and cost (r,) of `choice` (n,), added up from the tables; the loss is the correctly rounded sum.

    Raises ValueError when the choice has the wrong length or takes an option that is not there or not allowed.
    """
    items, options = problem.loss.shape
    rows = np.arange(items)
    if choice.shape != (items,) or not np.issubdtype(choice.dtype, np.integer):
        raise ValueError(f"a choice for this problem is {items} whole numbers, not {choice.dtype} of shape {choice.shape}")
    if np.any(choice < 0) or np.any(choice >= options) or not problem.allowed[rows, choice].all():
        raise ValueError("the choice takes an option that is not allowed")
    return math.fsum(problem.loss[rows, choice].tolist()), problem.cost[:, rows, choice].sum(axis=1)


def without_choice(problem: ChoiceProblem, smallest_limit: tuple[int, ...] | None, solver: str, started: float) -> Solution:
    """An answer without a choice: there is none, and `smallest_limit` would do; or, without that, none was found in time.

    `started` is a reading of `time.perf_counter`.
    """
    nothing = np.zeros(problem.resources, dtype=np.int64)
    status = Status.LIMIT if smallest_limit is None else Status.INFEASIBLE
    seconds = time.perf_counter() - started
    return Solution(None, math.inf, nothing, status, None, solver, seconds, "bound", smallest_limit)


def least_costs(problem: ChoiceProblem) -> tuple[int, ...]:
    """The least total of each resource, whatever becomes of the others: a lower end for every limit."""
    largest = np.iinfo(np.int64).max
    cheapest = np.where(problem.allowed, problem.cost, largest).min(axis=2)
    return tuple(int(total) for total in cheapest.sum(axis=1))


def brute_force(problem: ChoiceProblem) -> Solution:
    """Try every choice: the yardstick for solvers, for at most two million choices (ValueError beyond)."""
    started = time.perf_counter()
    options = [np.flatnonzero(row) for row in problem.allowed]
    shape = tuple(len(row) for row in options)
    if math.prod(shape) > BRUTE_FORCE_LIMIT:
        raise ValueError(f"{math.prod(shape)} choices are too many to try; use a solver from SOLVERS")
    loss = np.zeros(1)
    cost = np.zeros((problem.resources, 1), dtype=np.int64)
    for item, row in enumerate(options):
        loss = np.add.outer(loss, problem.loss[item, row]).ravel()
        cost = (cost[:, :, None] + problem.cost[:, item, row][:, None, :]).reshape(problem.resources, -1)
    fits = cost <= problem.limit[:, None]
    within = fits.all(axis=0)
    if not within.any():
        smallest = []
        for resource in range(problem.resources):
            others = np.delete(fits, resource, axis=0).all(axis=0)
            smallest.append(int(cost[resource, others if others.any() else slice(None)].min()))
        return without_choice(problem, tuple(smallest), "brute_force", started)
    best = np.flatnonzero(within)[loss[within].argmin()]
    picks = np.unravel_index(best, shape)
    choice = np.array([row[pick] for row, pick in zip(options, picks, strict=True)], dtype=np.int64)
    total, spent = recompute(problem, choice)
    seconds = time.perf_counter() - started
    return Solution(choice, total, spent, Status.OPTIMAL, None, "brute_force", seconds, "search")


def _checked(problem: ChoiceProblem) -> tuple[Floats, Ints, Ints, Bools]:
    """Validated copies of the four tables, with zeros where an option is not allowed."""
    given: tuple[npt.NDArray[Any], ...] = tuple(
        np.asarray(table) for table in (problem.loss, problem.cost, problem.limit, problem.allowed)
    )
    loss, cost, limit, allowed = given
    if loss.ndim != 2 or 0 in loss.shape:
        raise ValueError(f"loss must have the shape (items, options), at least one of each, not {loss.shape}")
    if limit.ndim != 1 or 0 in limit.shape:
        raise ValueError(f"limit must have the shape (resources,), at least one, not {limit.shape}")
    if cost.shape != (*limit.shape, *loss.shape):
        raise ValueError(f"cost must have the shape {(*limit.shape, *loss.shape)} (resources, items, options), not {cost.shape}")
    if allowed.shape != loss.shape or allowed.dtype != np.bool_:
        raise ValueError(f"allowed must be booleans of the shape {loss.shape}, not {allowed.dtype} of shape {allowed.shape}")
    for name, table in (("cost", cost), ("limit", limit)):
        if not np.issubdtype(table.dtype, np.integer):
            raise ValueError(f"{name} must be whole numbers (bytes, nanoseconds), not {table.dtype}; convert them on purpose")
    if not allowed.any(axis=1).all():
        raise ValueError(f"item {int(allowed.any(axis=1).argmin())} has no allowed option; allow one or leave the item out")
    loss = np.where(allowed, loss, 0.0).astype(np.float64)
    cost = np.where(allowed, cost, 0)
    if not np.isfinite(loss).all():
        raise ValueError("loss must be finite wherever allowed; mark an undefined pair as not allowed instead")
    if np.any(cost < 0):
        raise ValueError("cost must not be negative; add a constant to the item's costs and to the limit")
    if max(float(np.abs(loss).max()), int(cost.max())) * len(loss) >= 2**TOTAL_BITS:
        raise ValueError("losses and costs must add up to less than 2**60; measure them in a larger unit")
    if np.abs(limit.astype(object)).max() >= 2**63:
        raise ValueError("limit must fit in 64 bits; a limit beyond every cost can be stated as the largest total")
    return loss, cost.astype(np.int64), limit.astype(np.int64), allowed.copy()
