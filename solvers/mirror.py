"""The mirror problem: the least cost under a limit on the loss. "The smallest file that loses at most so much."

    minimise    sum_i cost[r, i, x_i]
    subject to  sum_i loss[i, x_i] <= loss limit,    all else as in the problem

(L-GreCo, arXiv 2210.17357, asks it of each training step.) It is a choice problem itself once the losses are whole numbers, so
every solver solves it. Losses are rounded *down*: E = floor(scale * loss). Rounded up, as L-GreCo does it, plans that meet the
limit exactly count as over it, and the answer may be worse than the plan that the limit was read off. Rounded down none is
lost, and what is let in beyond the limit is bounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from . import best
from .arrays import Bools, Ints
from .problem import ChoiceProblem, Proof, Solution, Status, recompute
from .validation import TOTAL_BITS


@dataclass(frozen=True, eq=False)
class LeastCost:
    """The answer to a mirror problem, in the words of the first one.

    `cost` of the mirrored resource and the true `loss` of `choice`; zero and infinity without one. No choice within the loss
    limit costs less than `lower_bound`, by multipliers; `gap` = cost - lower bound. `proof` as in `Solution`, and where the
    gap is zero the multipliers prove the optimum, costs being whole numbers. No choice at all loses less than `least_loss`.
    """

    choice: Ints | None
    cost: int
    loss: float
    lower_bound: int
    gap: int
    proof: Proof
    status: Status
    least_loss: float
    solver: str
    seconds: float


def mirror(problem: ChoiceProblem, loss_limit: float, resource: int = 0) -> tuple[ChoiceProblem, Callable[[Solution], LeastCost]]:
    """The problem whose loss is the cost of `resource` and whose `resource` is the loss; and the way back for its solution.

    Items, options, rules and the other resources stay. The mirrored resource's own limit is dropped: the least cost shows
    whether it is within. Its floor, where there is one, stays as one resource more, the last. Options that lose too much for
    any choice within the loss limit are no longer allowed, unless a rule names them or an item has no other.

    Rounding. E = floor(scale * loss), with the power of two `scale` for which n times the largest loss that the limit can
    hold is just below 2^60. With

        slack = (n + 1) / 2 units in the last place of the loss limit

    the limit of E is floor(scale * (loss limit + slack)). So every choice that keeps the loss limit is allowed, also one
    that keeps it only in decimals (0.8 + 0.4 <= 1.2, where floating point says 1.2000000000000002): the rounding of n losses
    and of the limit to floating point is within the slack. And every choice allowed has a true loss of at most

        loss limit + slack + n / scale

    (`tolerance`), about 1e-13 of the limit for hundreds of items.

    Raises ValueError when there is no such resource, the loss limit is negative or not finite, or a cost is so large that
    floating point does not hold it exactly.
    """
    if not 0 <= resource < problem.resources:
        raise ValueError(f"resource {resource} must be one of the {problem.resources} resources")
    if not 0 <= loss_limit < math.inf:
        raise ValueError(f"a loss limit is a finite number of at least 0, not {loss_limit}")
    cost = problem.cost[resource]
    if np.any(cost.astype(np.float64).astype(np.int64) != cost):
        raise ValueError(
            f"costs of resource {resource} have too many digits to be minimised exactly; measure them in a larger unit"
        )
    exponent, allowed = _exponent(problem, loss_limit), _within_reach(problem, loss_limit)
    # Twice the limit is enough to be out of the question; what is larger would only make the scale coarser.
    clipped = np.minimum(problem.loss, 2 * _largest(problem, loss_limit))
    costs, limits, floors = problem.cost.copy(), problem.limit.copy(), problem.floor.copy()
    costs[resource] = np.floor(np.ldexp(clipped, exponent)).astype(np.int64)
    scaled_limit = math.floor((Fraction(loss_limit) + _slack(problem, loss_limit)) * 2**exponent)
    limits[resource] = min(scaled_limit, 2**TOTAL_BITS)  # no total is larger
    floors[resource] = 0
    if problem.floor[resource] > 0:
        most = int(np.where(problem.allowed, cost, 0).max(axis=1).sum())
        costs = np.concatenate([costs, cost[None]])
        floors = np.append(floors, problem.floor[resource])
        limits = np.append(limits, max(most, int(problem.floor[resource])))
    mirrored = ChoiceProblem(cost.astype(np.float64), costs, limits, allowed, floors, problem.rules)

    def invert(solution: Solution) -> LeastCost:
        return _in_first_words(problem, resource, solution)

    return mirrored, invert


def tolerance(problem: ChoiceProblem, loss_limit: float) -> Fraction:
    """By how much the true loss of a choice that `mirror` allows may exceed `loss_limit`: slack + n / scale."""
    return _slack(problem, loss_limit) + Fraction(problem.items, 2 ** _exponent(problem, loss_limit))


def least_cost(
    problem: ChoiceProblem,
    loss_limit: float,
    *,
    resource: int = 0,
    solver: Callable[..., Solution] = best.solve,
    time_limit: float | None = None,
) -> LeastCost:
    """The choice that costs least of `resource` among those that lose at most `loss_limit`; see `mirror` for the rounding.

    `solver` is any of SOLVERS that takes the mirrored problem: one with as many limits and rules as `problem` has. Without a
    choice the status says whether there is none (INFEASIBLE) or none was found in time (LIMIT).

    Raises ValueError as `mirror` does, and as the solver does.
    """
    mirrored, invert = mirror(problem, loss_limit, resource)
    return invert(solver(mirrored, time_limit=time_limit))


def _slack(problem: ChoiceProblem, loss_limit: float) -> Fraction:
    """What the rounding of decimals may add up to: a loss within the limit has no coarser digits than the limit has."""
    return Fraction(problem.items + 1, 2) * Fraction(math.ulp(loss_limit))


def _largest(problem: ChoiceProblem, loss_limit: float) -> float:
    """The largest loss that matters: the limit, or the largest in the table where that is smaller."""
    return float(min(Fraction(float(problem.loss.max())), Fraction(loss_limit) + _slack(problem, loss_limit)))


def _within_reach(problem: ChoiceProblem, loss_limit: float) -> Bools:
    """The options (n, m) that a choice within the limit may contain, and what keeps the mirrored problem one: of each item the
    option that loses least, and what rules name. Without the others multipliers prove more."""
    losses = np.where(problem.allowed, problem.loss, np.inf)
    least = losses.min(axis=1, keepdims=True)
    spare = loss_limit * (1 + 1e-9) + float(_slack(problem, loss_limit)) - math.fsum(least.ravel().tolist())
    kept: Bools = losses - least <= max(0.0, spare)
    for rule in problem.rules:
        kept[rule.item, rule.option] = True
    return kept & problem.allowed


def _exponent(problem: ChoiceProblem, loss_limit: float) -> int:
    """The power of two of the scale: n times twice the largest loss stays below 2^60."""
    total = _largest(problem, loss_limit) * problem.items
    return max(0, TOTAL_BITS - 1 - math.frexp(total)[1]) if total else 0


def _in_first_words(problem: ChoiceProblem, resource: int, solution: Solution) -> LeastCost:
    least_loss = math.fsum(np.where(problem.allowed, problem.loss, np.inf).min(axis=1).tolist())
    cheapest = np.where(problem.allowed, problem.cost[resource], np.iinfo(np.int64).max).min(axis=1)
    if solution.choice is None or solution.certificate is None:
        bound = int(cheapest.sum())
        return LeastCost(None, 0, math.inf, bound, 0, "bound", solution.status, least_loss, solution.solver, solution.seconds)
    loss, cost = recompute(problem, solution.choice)
    spent = int(cost[resource])
    certificate = solution.certificate
    bound = max(int(cheapest.sum()), math.ceil(certificate.lower_bound / certificate.loss_scale))
    proof: Proof = "multipliers" if bound == spent else solution.proof
    status = Status.OPTIMAL if proof != "bound" else solution.status
    return LeastCost(
        solution.choice, spent, loss, bound, spent - bound, proof, status, least_loss, solution.solver, solution.seconds
    )
