"""The choice problem (multiple-choice knapsack with side constraints) and what an answer to it is.

    pick one allowed option x_i for each of n items
    minimise    sum_i loss[i, x_i]
    subject to  floor[r] <= sum_i cost[r, i, x_i] <= limit[r]        for each of the resources r
                and the rules (`rules.py`), which count, balance or forbid

Nothing here has a unit of measure: an item may be a layer, an expert or a page of a catalogue.
"""

from __future__ import annotations

import copy
import enum
import math
import time
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np

from .arrays import Bools, Floats, Ints
from .rows import Rows
from .rules import Rule
from .validation import check_rules, checked_limit, checked_tables

Proof = Literal["multipliers", "search", "bound"]


class Status(enum.Enum):
    """What is known about an answer; the value is the sentence a person reads."""

    OPTIMAL = "no choice within the limits has a smaller loss"
    FEASIBLE = "the choice keeps the limits; its gap says how much smaller a loss could be at most"
    INFEASIBLE = "no choice keeps the limits; the smallest limits that would do are stated"
    LIMIT = "stopped before the search was complete; the choice, where there is one, is the best found"


@dataclass(frozen=True, eq=False)
class ChoiceProblem:
    """Tables and limits; see the programme at the top of this file.

    `loss` (n, m) float64, finite and >= 0 where allowed. `cost` (r, n, m) whole numbers >= 0, `limit` (r,) whole numbers.
    `allowed` (n, m) bool, at least one option in each row. Entries that are not allowed are never read, whatever they
    hold. `floor` (r,) whole numbers, zeros unless given: the least that a choice must spend. `rules`: see `Rule`.
    The arrays are copied and made read-only.

    Raises ValueError, naming the table, the item and the option, and the remedy, when they are not so.
    """

    loss: Floats
    cost: Ints
    limit: Ints
    allowed: Bools
    floor: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        for name, table in checked_tables(self.loss, self.cost, self.limit, self.allowed, self.floor).items():
            table.setflags(write=False)
            object.__setattr__(self, name, table)
        object.__setattr__(self, "rules", tuple(self.rules))
        check_rules(self.rules, self.allowed)

    @property
    def items(self) -> int:
        return len(self.loss)

    @property
    def resources(self) -> int:
        return len(self.limit)

    @property
    def plain(self) -> bool:
        """Whether nothing but one limit constrains the choice: the multiple-choice knapsack of the textbooks."""
        return self.resources == 1 and not self.rules and not self.floor.any()

    def within(self, limit: Ints) -> ChoiceProblem:
        """The same problem under other limits (r,): the tables are shared, and nothing of them is checked again.

        Raises ValueError when these are no limits for them."""
        limit = checked_limit(limit, self.floor)
        limit.setflags(write=False)
        other = copy.copy(self)
        object.__setattr__(other, "limit", limit)
        return other

    @property
    def rows(self) -> Rows:
        """The resources and rules as rows."""
        return Rows.of(self.cost, self.limit, self.floor, self.rules)


@dataclass(frozen=True)
class Certificate:
    """Evidence that no choice has a loss below `lower_bound`, checkable from the tables alone (`certificate.certify`).

    `multipliers` (one a resource, then one a rule) are prices: scaled loss a unit of cost; positive where an upper
    bound is priced, negative where a lower one is. `lower_bound` and `gap` (loss of the choice minus lower bound) are
    exact, in scaled losses: the integers round(loss * loss_scale).
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
    than the gap). `reason` says why this solver, where it was picked.

    When infeasible, `smallest_limit[r]` is the smallest limit of resource r that would do with all else as it is, or,
    where the rest alone rules out every choice, the least total of r. `blocking` names constraints that cannot all hold.
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
    blocking: tuple[str, ...] = ()
    reason: str = ""


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


def without_choice(
    problem: ChoiceProblem,
    smallest_limit: tuple[int, ...] | None,
    solver: str,
    started: float,
    blocking: tuple[str, ...] = (),
) -> Solution:
    """An answer without a choice: there is none, and `smallest_limit` would do; or, without that, none was found in time.

    `started` is a reading of `time.perf_counter`.
    """
    nothing = np.zeros(problem.resources, dtype=np.int64)
    status = Status.LIMIT if smallest_limit is None else Status.INFEASIBLE
    seconds = time.perf_counter() - started
    return Solution(None, math.inf, nothing, status, None, solver, seconds, "bound", smallest_limit, blocking)


def check_plain(problem: ChoiceProblem, solver: str) -> None:
    """Raises ValueError, for a solver that knows one limit and nothing else, when the problem has more."""
    if not problem.plain:
        found = [f"{problem.resources} resources"] * (problem.resources > 1) + ["a floor"] * bool(problem.floor.any())
        found += [f"{len(problem.rules)} rules"] * bool(problem.rules)
        raise ValueError(f"{solver} solves problems with one limit and nothing else, not {', '.join(found)}; use `best`")


def least_costs(problem: ChoiceProblem) -> tuple[int, ...]:
    """The least total of each resource, whatever becomes of the others: a lower end for every limit."""
    largest = np.iinfo(np.int64).max
    cheapest = np.where(problem.allowed, problem.cost, largest).min(axis=2)
    return tuple(int(total) for total in cheapest.sum(axis=1))
