from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitplan.solvers import ChoiceProblem, Status, brute_force, certify, count, scaled
from bitplan.solvers.certificate import answer
from bitplan.solvers.rows import FREE
from problems import FAMILIES, make, padded, random_problem, ruled

# The worked instance in tenths, so that its losses are whole numbers and scaling rounds nothing.
TENTHS = padded([[(2, 90), (3, 40), (4, 10)], [(4, 50), (6, 32), (8, 5)], [(2, 20), (3, 15), (4, 2)]], 12)
BEST = np.array([2, 0, 2])


def test_the_worked_certificate() -> None:
    scale = scaled(TENTHS).scale
    certificate = certify(TENTHS, BEST, [Fraction(45, 4) * scale])
    assert certificate.lower_bound == Fraction(575, 10) * scale
    assert certificate.gap == Fraction(45, 10) * scale
    assert certificate.multipliers == (Fraction(45, 4) * scale,)
    assert certificate.loss_scale == scale


@given(
    family=st.sampled_from(list(FAMILIES)),
    seed=st.integers(0, 2**32),
    multiplier=st.fractions(0, 1, max_denominator=10**6) | st.fractions(0, 10**20, max_denominator=10**3),
)
def test_any_multiplier_gives_a_true_bound(family: str, seed: int, multiplier: Fraction) -> None:
    problem = random_problem(family, seed, 4, 3)
    best = brute_force(problem).choice
    assert best is not None
    certificate = certify(problem, best, [multiplier])
    assert certificate.gap >= 0
    assert certificate.lower_bound + certificate.gap == scaled(problem).loss[np.arange(4), best].sum()


@given(prices=st.tuples(st.fractions(0, 100), st.fractions(0, 100)), seed=st.integers(0, 2**32))
def test_several_resources_have_a_multiplier_each(prices: tuple[Fraction, Fraction], seed: int) -> None:
    rng = np.random.default_rng(seed)
    loss, cost = rng.integers(0, 9, (3, 3)), rng.integers(0, 9, (2, 3, 3))
    problem = make(loss, cost, 16, 16)
    best = brute_force(problem)
    if best.choice is not None:
        scale = scaled(problem).scale
        certificate = certify(problem, best.choice, [price * scale for price in prices])
        by_hand = sum(
            min(int(loss[i, j]) + sum(prices[r] * int(cost[r, i, j]) for r in range(2)) for j in range(3)) for i in range(3)
        )
        assert certificate.lower_bound == scale * (by_hand - 16 * prices[0] - 16 * prices[1])
        assert certificate.gap >= 0


def test_options_that_are_not_allowed_do_not_lower_the_bound() -> None:
    open_, closed = (make([[5.0, 1.0]], [[0, 0]], 0, allowed=[[True, ok]]) for ok in (True, False))
    assert certify(open_, np.array([0]), [Fraction(0)]).gap > 0
    assert certify(closed, np.array([0]), [Fraction(0)]).gap == 0


@pytest.mark.parametrize("multipliers", [[], [Fraction(1), Fraction(1)]])
def test_multipliers_are_one_a_row(multipliers: list[Fraction]) -> None:
    with pytest.raises(ValueError, match="needs 1 multipliers, one a row"):
        certify(TENTHS, BEST, multipliers)


def test_a_negative_multiplier_prices_a_lower_bound_and_needs_one() -> None:
    """At least 11 of cost: the cheapest choices are out, and a price below zero says what that costs at least."""
    floored = replace(TENTHS, floor=np.array([11]), loss=TENTHS.loss.max() - TENTHS.loss)
    best = brute_force(floored).choice
    assert best is not None
    scale = scaled(floored).scale
    bound = certify(floored, best, [Fraction(-20) * scale]).lower_bound
    assert certify(floored, best, [Fraction(0)]).lower_bound < bound <= scaled_loss(floored, best)
    open_below = replace(TENTHS, rules=(count([0], [2], at_most=1),))
    with pytest.raises(ValueError, match=r"on the options .2.' is not bounded below, so its multiplier cannot be -1"):
        certify(open_below, BEST, [Fraction(0), Fraction(-1)])


@given(seed=st.integers(0, 2**32), prices=st.lists(st.fractions(-50, 50, max_denominator=1000), min_size=5, max_size=5))
def test_any_multipliers_of_any_rows_give_a_true_bound(seed: int, prices: list[Fraction]) -> None:
    problem = ruled("near", seed, 4, 3)
    best, rows = brute_force(problem).choice, problem.rows
    if best is not None:
        allowed = [
            Fraction(0) if abs(int(most if price > 0 else least)) == FREE else price * scaled(problem).scale
            for price, least, most in zip(prices, rows.least, rows.most, strict=False)
        ]
        assert certify(problem, best, allowed).lower_bound <= scaled_loss(problem, best)


def scaled_loss(problem: ChoiceProblem, choice: npt.NDArray[np.int64]) -> int:
    return int(scaled(problem).loss[np.arange(problem.items), choice].sum())


def test_a_choice_beyond_the_limit_gets_no_certificate() -> None:
    with pytest.raises(ValueError, match="the choice breaks a bound: resource 0 is 16, more than 12"):
        certify(TENTHS, np.array([2, 2, 2]), [Fraction(0)])


@pytest.mark.parametrize("unit", [1e-300, 1e-12, 1.0, 3.0, 1e6, 1e15])
def test_losses_are_scaled_to_use_the_room_there_is(unit: float) -> None:
    problem = make([[unit, 0.0], [unit / 3, unit / 7]], np.zeros((2, 2), dtype=int), 0)
    tables = scaled(problem)
    assert math.log2(tables.scale).is_integer()
    assert 2**59 <= 2 * int(tables.loss.max()) < 2**60
    for loss, integer in zip(problem.loss.flat, tables.loss.flat, strict=True):
        assert abs(Fraction(float(loss)) * tables.scale - int(integer)) <= Fraction(1, 2)


def test_losses_of_zero_need_no_scale() -> None:
    tables = scaled(make(np.zeros((2, 2)), np.zeros((2, 2), dtype=int), 0))
    assert tables.scale == 1
    assert not tables.loss.any()


@given(st.integers(-40, 40))
def test_the_unit_of_the_losses_does_not_matter(exponent: int) -> None:
    problem = random_problem("wild", 5, 4, 3)
    other = make(np.ldexp(problem.loss, exponent), problem.cost, int(problem.limit[0]), allowed=problem.allowed)
    assert np.array_equal(scaled(problem).loss, scaled(other).loss)


@pytest.mark.parametrize(
    ("choice", "searched", "stopped", "status", "proof"),
    [
        (BEST, True, False, Status.OPTIMAL, "search"),
        (BEST, False, False, Status.FEASIBLE, "bound"),
        (BEST, False, True, Status.LIMIT, "bound"),
    ],
)
def test_an_answer_claims_what_is_proven(choice: np.ndarray, searched: bool, stopped: bool, status: Status, proof: str) -> None:
    price = Fraction(45, 4) * scaled(TENTHS).scale
    solution = answer(TENTHS, choice, [price], "test", 0.0, searched=searched, stopped=stopped)
    assert (solution.status, solution.proof, solution.loss, solution.cost.tolist()) == (status, proof, 62.0, [12])


def test_a_gap_of_zero_needs_no_search() -> None:
    problem = make(TENTHS.loss, TENTHS.cost, 14)
    solution = answer(problem, np.array([2, 2, 0]), [Fraction(10) * scaled(problem).scale], "test", 0.0, stopped=True)
    assert (solution.status, solution.proof) == (Status.OPTIMAL, "multipliers")
