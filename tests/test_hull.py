from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from bitplan.solvers import ChoiceProblem, ScaledTables, Status, brute_force, certify, recompute, scaled
from bitplan.solvers.hull import Relaxation, fill, relax, solve
from problems import FAMILIES, make, random_problem, worked


def greatest_bound(problem: ChoiceProblem) -> Fraction:
    """The bound is concave and piecewise linear in the multiplier: try every place where it can bend."""
    tables = scaled(problem)
    loss, cost = tables.loss.tolist(), tables.cost[0].tolist()
    bends = {Fraction(0)}
    for item, mask in enumerate(tables.allowed):
        for j, k in itertools.permutations(np.flatnonzero(mask).tolist(), 2):
            if cost[item][j] < cost[item][k] and loss[item][j] > loss[item][k]:
                bends.add(Fraction(loss[item][j] - loss[item][k], cost[item][k] - cost[item][j]))
    cheapest = np.where(tables.allowed, tables.cost[0], tables.cost.max()).argmin(axis=1)
    return max(certify(problem, cheapest, [multiplier]).lower_bound for multiplier in bends)


@pytest.mark.parametrize(
    ("limit", "multiplier", "loss"), [(11, 1.125, 7.5), (12, 1.125, 6.2), (13, 1.125, 6.2), (15, 0.9, 3.0), (16, 0, 1.7)]
)
def test_the_worked_multipliers(limit: int, multiplier: float, loss: float) -> None:
    solution = solve(worked(limit))
    assert solution.certificate is not None
    (price,) = solution.certificate.multipliers
    assert float(price / solution.certificate.loss_scale) == pytest.approx(multiplier, rel=1e-12)
    assert solution.loss == pytest.approx(loss)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("family", FAMILIES)
def test_no_multiplier_gives_a_greater_bound(family: str, seed: int) -> None:
    problem = random_problem(family, seed, 6, 5)
    certificate = solve(problem).certificate
    assert certificate is not None
    assert certificate.lower_bound == greatest_bound(problem)


@pytest.mark.parametrize("limit", [2**40, 2**41 - 1, 2**41, 2**41 + 1, 2**42 - 1, 5 * 2**39])
def test_slopes_that_float64_cannot_tell_apart(limit: int) -> None:
    """Steps of one cost that save 2^55 less 5, 4, ..., 1: all the same in float64, and the steepest come last."""
    loss = [[2.0**55, 5.0 - item] for item in range(5)]
    problem = make(loss, [[0, 2**40]] * 5, limit)
    solution = solve(problem)
    assert solution.certificate is not None
    assert solution.certificate.lower_bound == greatest_bound(problem)
    minimises(scaled(problem), relax(scaled(problem)))


def minimises(tables: ScaledTables, relaxation: Relaxation) -> None:
    """The relaxed choice keeps the limit and minimises loss + multiplier * cost, exactly."""
    rows = np.arange(len(tables.loss))
    assert tables.cost[0, rows, relaxation.choice].sum() <= tables.limit[0]
    for loss, cost, mask, option in zip(tables.loss, tables.cost[0], tables.allowed, relaxation.choice, strict=True):
        priced = [int(lost) + relaxation.multiplier * int(spent) for lost, spent in zip(loss, cost, strict=True)]
        assert priced[option] == min(value for value, ok in zip(priced, mask, strict=True) if ok)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bound_is_that_of_the_linear_relaxation(family: str) -> None:
    from scipy.optimize import linprog

    problem = random_problem(family, 3, 30, 6, holes=False)
    certificate = solve(problem).certificate
    assert certificate is not None
    loss = problem.loss.ravel() / problem.loss.max()
    one_each = np.kron(np.eye(30), np.ones(6))
    relaxed = linprog(loss, A_ub=problem.cost.reshape(1, -1), b_ub=problem.limit, A_eq=one_each, b_eq=np.ones(30))
    bound = float(certificate.lower_bound / certificate.loss_scale) / problem.loss.max()
    assert bound == pytest.approx(relaxed.fun, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_relaxed_choice_minimises_priced_loss(family: str) -> None:
    tables = scaled(random_problem(family, 9, 50, 6))
    minimises(tables, relax(tables))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gap_is_less_than_one_step(family: str) -> None:
    problem = random_problem(family, 5, 60, 6)
    solution = solve(problem)
    assert solution.certificate is not None
    loss = scaled(problem).loss
    step = np.where(problem.allowed, loss, loss.min()).max(axis=1) - np.where(problem.allowed, loss, loss.max()).min(axis=1)
    assert solution.certificate.gap <= int(step.max())
    assert solution.status is (Status.OPTIMAL if solution.certificate.gap == 0 else Status.FEASIBLE)


def test_filling_leaves_no_move_that_fits_and_saves() -> None:
    problem = random_problem("wild", 2, 40, 5)
    tables = scaled(problem)
    start = np.where(tables.allowed, tables.cost[0], tables.cost.max()).argmin(axis=1)
    before = start.copy()
    choice = fill(tables, start)
    assert np.array_equal(start, before)
    loss, (cost,) = recompute(problem, choice)
    assert loss < recompute(problem, start)[0]
    for item, option in zip(*np.nonzero(problem.allowed), strict=True):
        other = choice.copy()
        other[item] = option
        other_loss, (other_cost,) = recompute(problem, other)
        assert other_cost > problem.limit[0] or other_loss >= loss
    assert cost <= problem.limit[0]


def test_too_small_a_limit_is_an_answer() -> None:
    solution = solve(worked(7))
    assert (solution.status, solution.smallest_limit, solution.choice) == (Status.INFEASIBLE, (8,), None)
    assert solve(worked(8)).loss == brute_force(worked(8)).loss
