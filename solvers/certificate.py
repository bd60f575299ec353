"""Certificates: a lower bound from multipliers alone, in exact arithmetic.

For any prices lambda of the rows (`rows.py`), every choice within the bounds has a loss of at least

    g(lambda) = sum_i min_j ( E[i, j] + sum_q lambda_q a[q, i, j] ) - sum_q lambda_q edge_q

where edge_q is the upper bound of row q where lambda_q > 0 and the lower one where lambda_q < 0 (Lagrangian duality;
Everett 1963, Shoham and Gersho 1988). Adding it up takes one pass over the tables and no solver needs to be trusted. E are
the losses as integers, E = round(loss * scale), so the bound holds exactly for E, and for the real losses up to
n / (2 scale), far below their own rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .arrays import Bools, Ints
from .problem import Certificate, ChoiceProblem, Proof, Solution, Status, recompute
from .rows import Rows
from .validation import TOTAL_BITS

__all__ = ["Certificate", "ScaledTables", "answer", "certify", "minimisers", "scaled"]


@dataclass(frozen=True, eq=False)
class ScaledTables:
    """A choice problem in integers: `loss` (n, m) = round(problem.loss * scale); the rest as in the problem."""

    loss: Ints
    cost: Ints
    limit: Ints
    allowed: Bools
    scale: int
    rows: Rows


def scaled(problem: ChoiceProblem) -> ScaledTables:
    """The problem with integer losses. `scale` is the power of two that makes n max loss lie in [2^59, 2^60).

    So no loss is rounded by more than n 2^-60 of the largest one, and whole numbers not at all. A power of two keeps the
    digits of the floating-point numbers as they are.
    """
    total = float(problem.loss.max()) * problem.items
    exponent = max(0, TOTAL_BITS - math.frexp(total)[1]) if total else 0
    loss = np.rint(np.ldexp(problem.loss, exponent)).astype(np.int64)
    return ScaledTables(loss, problem.cost, problem.limit, problem.allowed, 1 << exponent, problem.rows)


def certify(problem: ChoiceProblem, choice: Ints, multipliers: Sequence[Fraction]) -> Certificate:
    """The certificate that `multipliers` (one a row, scaled loss a unit of cost) give for `choice`; O(n m q), exact.

    Raises ValueError when a multiplier is missing or prices a side that is not bounded, or the choice breaks a bound.
    """
    recompute(problem, choice)  # refuses what is no choice
    return certify_tables(scaled(problem), choice, multipliers)


def certify_tables(
    tables: ScaledTables, choice: Ints, multipliers: Sequence[Fraction], least: Bools | None = None
) -> Certificate:
    """`certify`, for who has the problem's `tables` at hand and knows that `choice` takes allowed options; `least`: see
    `lower_bound`."""
    if len(multipliers) != len(tables.rows):
        raise ValueError(f"a certificate needs {len(tables.rows)} multipliers, one a row, not {list(multipliers)}")
    if broken := tables.rows.broken(choice):
        raise ValueError(f"the choice breaks a bound: {broken[0]}")
    bound = lower_bound(tables, multipliers, least)
    loss = int(tables.loss[np.arange(len(choice)), choice].sum())
    return Certificate(tuple(multipliers), bound, loss - bound, tables.scale)


def lower_bound(tables: ScaledTables, multipliers: Sequence[Fraction], least: Bools | None = None) -> Fraction:
    """g(multipliers), exactly; `least` are their `minimisers`, where they are at hand. Raises ValueError when a multiplier
    prices a side that is not bounded."""
    edges = tables.rows.edges(multipliers)
    first = (minimisers(tables, multipliers) if least is None else least).argmax(axis=1)
    loss = int(tables.loss[np.arange(len(first)), first].sum())
    totals = tables.rows.totals(first).tolist()
    priced = (multiplier * (total - edge) for multiplier, total, edge in zip(multipliers, totals, edges, strict=True))
    return loss + sum(priced, Fraction(0))


def minimisers(tables: ScaledTables, multipliers: Sequence[Fraction]) -> Bools:
    """Which options (n, m) minimise E[i, j] + sum_q lambda_q a[q, i, j] over the allowed options j of item i, exactly.

    Floating point with a bound on its error leaves one candidate for most items; where it leaves several, they are
    compared in unbounded integers.
    """
    prices = [float(multiplier) for multiplier in multipliers]
    loss = tables.loss.astype(np.float64)
    priced = tables.rows.priced(loss, prices)
    if any(price < 0 for price in prices) or tables.rows.rules:
        magnitude = tables.rows.priced(loss, [abs(price) for price in prices])
        for price, rule in zip(prices[len(tables.cost) :], tables.rows.rules, strict=True):
            magnitude[rule.item, rule.option] += 2 * abs(price) * np.abs(rule.weight)
    else:
        magnitude = priced
    error = magnitude * ((len(prices) + 3) * 2.0**-51)
    priced[~tables.allowed] = np.inf
    above = priced + error
    nearest = above.min(axis=1, keepdims=True)
    candidates: Bools = np.subtract(priced, error, out=above) <= nearest
    candidates &= tables.allowed
    unclear = np.flatnonzero(candidates.sum(axis=1) > 1)
    if len(unclear):
        common = math.lcm(*(multiplier.denominator for multiplier in multipliers))
        numerators = [int(multiplier * common) for multiplier in multipliers]
        exactly = tables.rows.priced_exactly(tables.loss, numerators, common, unclear)
        exactly[~candidates[unclear]] = exactly.max() + 1
        candidates[unclear] &= np.asarray(exactly == exactly.min(axis=1, keepdims=True), dtype=np.bool_)
    return candidates


def answer(
    problem: ChoiceProblem,
    choice: Ints,
    multipliers: Sequence[Fraction],
    solver: str,
    started: float,
    *,
    searched: bool = False,
    stopped: bool = False,
    tables: ScaledTables | None = None,
    least: Bools | None = None,
) -> Solution:
    """A certified solution. `searched`: an exact search found nothing better; `stopped`: one was cut short.

    `started` is a reading of `time.perf_counter`; `tables` are those of `scaled(problem)`, and `least` their `minimisers`,
    where they are at hand.
    """
    tables = tables or scaled(problem)
    loss, cost = recompute(problem, choice)
    certificate = certify_tables(tables, choice, multipliers, least)
    proof: Proof = "multipliers" if certificate.gap == 0 else "search" if searched else "bound"
    status = Status.OPTIMAL if proof != "bound" else Status.LIMIT if stopped else Status.FEASIBLE
    return Solution(choice, loss, cost, status, certificate, solver, time.perf_counter() - started, proof)
