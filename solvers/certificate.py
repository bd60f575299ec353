"""Certificates: a lower bound from multipliers alone, in exact arithmetic.

For any prices lambda_r >= 0 of the resources, every choice within the limits has a loss of at least

    g(lambda) = sum_i min_j ( E[i, j] + sum_r lambda_r c[r, i, j] ) - sum_r lambda_r B[r]

(Lagrangian duality; Everett 1963, Shoham and Gersho 1988). Adding it up takes one pass over the tables and no solver
needs to be trusted. E are the losses as integers, E = round(loss * scale), so the bound holds exactly for E, and for
the real losses up to n / (2 scale), far below their own rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from .problem import TOTAL_BITS, Bools, Certificate, ChoiceProblem, Ints, Proof, Solution, Status, recompute

__all__ = ["Certificate", "ScaledTables", "answer", "certify", "scaled"]


@dataclass(frozen=True, eq=False)
class ScaledTables:
    """A choice problem in integers: `loss` (n, m) = round(problem.loss * scale); the rest as in the problem."""

    loss: Ints
    cost: Ints
    limit: Ints
    allowed: Bools
    scale: int


def scaled(problem: ChoiceProblem) -> ScaledTables:
    """The problem with integer losses. `scale` is the power of two that makes n max |loss| lie in [2^59, 2^60).

    So no loss is rounded by more than n 2^-60 of the largest one, and whole numbers not at all. A power of two keeps the
    digits of the floating-point numbers as they are.
    """
    total = float(np.abs(problem.loss).max()) * problem.items
    exponent = max(0, TOTAL_BITS - math.frexp(total)[1]) if total else 0
    loss = np.rint(np.ldexp(problem.loss, exponent)).astype(np.int64)
    return ScaledTables(loss, problem.cost, problem.limit, problem.allowed, 1 << exponent)


def certify(problem: ChoiceProblem, choice: Ints, multipliers: Sequence[Fraction]) -> Certificate:
    """The certificate that `multipliers` (one a resource, scaled loss a unit of cost) give for `choice`; O(n m r), exact.

    Raises ValueError when a multiplier is negative or missing, or the choice breaks a limit.
    """
    if len(multipliers) != problem.resources or any(multiplier < 0 for multiplier in multipliers):
        raise ValueError(f"a certificate needs {problem.resources} multipliers, none negative, not {list(multipliers)}")
    _, cost = recompute(problem, choice)
    if np.any(cost > problem.limit):
        raise ValueError(f"the choice costs {cost.tolist()}, more than the limit {problem.limit.tolist()}")
    tables = scaled(problem)
    common = math.lcm(*(multiplier.denominator for multiplier in multipliers))
    prices = [int(multiplier * common) for multiplier in multipliers]
    priced = priced_losses(tables, prices, common)
    spent = sum(price * int(limit) for price, limit in zip(prices, tables.limit, strict=True))
    bound = Fraction(int(priced.min(axis=1).sum()) - spent, common)
    loss = int(tables.loss[np.arange(problem.items), choice].sum())
    return Certificate(tuple(multipliers), bound, loss - bound, tables.scale)


def priced_losses(tables: ScaledTables, prices: Sequence[int], common: int) -> npt.NDArray[np.object_]:
    """common * E[i, j] + sum_r prices[r] * c[r, i, j] in Python's unbounded integers, shape (n, m).

    An option that is not allowed gets a number above all others, so that it never is the least.
    """
    priced = tables.loss.astype(object) * common
    for price, cost in zip(prices, tables.cost, strict=True):
        priced = priced + cost.astype(object) * price
    priced[~tables.allowed] = priced.max() + 1
    return priced


def answer(
    problem: ChoiceProblem,
    choice: Ints,
    multipliers: Sequence[Fraction],
    solver: str,
    started: float,
    *,
    searched: bool = False,
    stopped: bool = False,
) -> Solution:
    """A certified solution. `searched`: an exact search found nothing better; `stopped`: one was cut short.

    `started` is a reading of `time.perf_counter`.
    """
    certificate = certify(problem, choice, multipliers)
    proof: Proof = "multipliers" if certificate.gap == 0 else "search" if searched else "bound"
    status = Status.OPTIMAL if proof != "bound" else Status.LIMIT if stopped else Status.FEASIBLE
    loss, cost = recompute(problem, choice)
    return Solution(choice, loss, cost, status, certificate, solver, time.perf_counter() - started, proof)
