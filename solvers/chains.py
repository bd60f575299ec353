"""Nested formats: several plans over one checkpoint, which an item may only go down from a larger budget to a smaller.

Where the code of b bits is the top of the code of more bits (Any-Precision, MWQ, BitStack, Double Rounding), one stored tensor
holds every level of an item, and a device short of memory drops levels without loading anything. Plans made one by one need
not be a chain: an item may rise where the budget falls. Made together they can be: an option of the composite item is a
non-increasing tuple of levels, one a plan.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .arrays import Ints
from .problem import ChoiceProblem
from .rules import Rule

MOST_TUPLES = 2**16


def monotone_chains(
    problem: ChoiceProblem, limits: npt.ArrayLike, *, weights: Sequence[float] | None = None
) -> tuple[ChoiceProblem, Callable[[Ints], Ints]]:
    """Plans for k budgets at once, from the largest to the smallest, in which no item ever rises:

        minimise    sum_p weights[p] sum_i loss[i, x[p, i]]
        subject to  sum_i cost[q, i, x[p, i]] <= limits[p, q]    and    x[p + 1, i] <= x[p, i]

    Options are levels: column j + 1 is one level above column j. `limits` (k, r) whole numbers, none rising from one row to
    the next, take the place of `problem.limit`; floors and rules hold for every plan. `weights` (k,), ones unless given:
    how much each plan matters. Returns a problem with k r limits (plan by plan) and one option for each non-increasing
    tuple of levels, and the function that turns a choice for it into choices (k, n).

    Raises ValueError when the limits rise or have another shape, weights are negative or not k, or there are more than 2^16
    tuples: C(m + k - 1, k) of m levels.
    """
    bounds = np.asarray(limits)
    if bounds.ndim != 2 or 0 in bounds.shape or bounds.shape[1] != problem.resources:
        raise ValueError(f"limits must have the shape (plans, {problem.resources}), not {bounds.shape}")
    if np.any(bounds[1:] > bounds[:-1]):
        raise ValueError("limits must not rise from one plan to the next; list the plans from the largest to the smallest")
    plans, options = len(bounds), problem.loss.shape[1]
    matter = np.ones(plans) if weights is None else np.array(weights, dtype=np.float64)
    if matter.shape != (plans,) or not np.isfinite(matter).all() or np.any(matter < 0):
        raise ValueError(f"weights must be {plans} numbers >= 0, one a plan")
    if math.comb(options + plans - 1, plans) > MOST_TUPLES:
        raise ValueError(f"{plans} plans over {options} levels make more than {MOST_TUPLES} chains; leave out levels or plans")
    falling = itertools.combinations_with_replacement(range(options - 1, -1, -1), plans)
    levels = np.array(list(falling), dtype=np.int64).T  # (k, tuples)
    loss = sum((weight * problem.loss[:, level] for weight, level in zip(matter, levels, strict=True)), np.zeros(1))
    cost = np.concatenate([problem.cost[:, :, level] for level in levels])
    allowed = np.logical_and.reduce([problem.allowed[:, level] for level in levels])
    rules = tuple(_rule_of_plan(rule, plan, level) for plan, level in enumerate(levels) for rule in problem.rules)
    floor = np.tile(problem.floor, plans)

    def invert(choice: Ints) -> Ints:
        return levels[:, choice]

    return ChoiceProblem(loss, cost, bounds.ravel(), allowed, floor, rules), invert


def _rule_of_plan(rule: Rule, plan: int, level: Ints) -> Rule:
    """The rule for one plan, which has `level[t]` where the composite option is t."""
    named, chain = np.nonzero(rule.option[:, None] == level)
    name = f"{rule.name} (plan {plan})"
    return Rule(name, rule.item[named], chain, rule.weight[named], least=rule.least, most=rule.most)


def drop_only(problem: ChoiceProblem, choice: Ints) -> ChoiceProblem:
    """The problem in which no item may rise above its level in `choice` (n,): what a smaller budget leaves of a loaded plan.

    Options are levels as in `monotone_chains`. Raises ValueError when the choice takes an option that is not allowed.
    """
    items, options = problem.loss.shape
    if choice.shape != (items,) or np.any(choice < 0) or np.any(choice >= options):
        raise ValueError(f"a choice for this problem is {items} options below {options}")
    if not problem.allowed[np.arange(items), choice].all():
        raise ValueError("the choice takes an option that is not allowed")
    allowed = problem.allowed & (np.arange(options) <= choice[:, None])
    return ChoiceProblem(problem.loss, problem.cost, problem.limit, allowed, problem.floor, problem.rules)
