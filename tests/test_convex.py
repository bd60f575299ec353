from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from bitplan.solvers import SOLVERS, ChoiceProblem, Solution, Status, balance, brute_force, count, forbid, scaled
from bitplan.solvers.certificate import lower_bound
from bitplan.solvers.convex import solve
from problems import FAMILIES, hawq, random_problem, worked


def bound_of(solution: Solution) -> float:
    assert solution.certificate is not None
    return float(solution.certificate.lower_bound / solution.certificate.loss_scale)


@pytest.mark.parametrize("limit", range(8, 17))
def test_the_worked_bounds(limit: int) -> None:
    """The bounds that the source prints for the worked instance; the slope between vertices is the multiplier."""
    solution, hull = solve(worked(limit)), SOLVERS["hull"](worked(limit))
    assert bound_of(solution) == pytest.approx(bound_of(hull), rel=1e-12)
    assert solution.loss >= brute_force(worked(limit)).loss
    assert solution.cost[0] <= limit


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", FAMILIES)
def test_no_multiplier_bounds_much_better(family: str, seed: int) -> None:
    problem = random_problem(family, seed, 60, 6)
    solution, hull = solve(problem), SOLVERS["hull"](problem)
    assert bound_of(hull) - bound_of(solution) <= 1e-12 * float(problem.loss.max()) * problem.items
    assert solution.cost[0] <= problem.limit[0]
    assert solution.loss <= bound_of(hull) + np.where(problem.allowed, problem.loss, 0).max()
    assert solution.status is (Status.OPTIMAL if solution.proof == "multipliers" else Status.FEASIBLE)


def ruled(seed: int, *, exactly: int = 3) -> ChoiceProblem:
    """Two resources, a floor, and every kind of rule, over six items."""
    rng = np.random.default_rng(seed)
    loss, cost = rng.random((6, 4)), rng.integers(1, 60, (2, 6, 4))
    rules = (
        count(range(6), [0, 1], exactly=exactly),
        balance(range(4), [0], [3]),
        forbid((0, 2), (5, 2)),
        count([1, 2, 3], [3], at_most=1),
    )
    spread = cost.max(axis=2).sum(axis=1) - cost.min(axis=2).sum(axis=1)
    limit = cost.min(axis=2).sum(axis=1) + spread * 3 // 4
    floor = np.array([int(cost[0].min(axis=1).sum() + spread[0] // 4), 0])
    return ChoiceProblem(loss, cost, limit, np.ones(loss.shape, dtype=np.bool_), floor, rules)


@pytest.mark.parametrize("seed", range(12))
def test_rows_and_rules_are_kept_and_bounds_are_true(seed: int) -> None:
    problem = ruled(seed)
    solution, best = solve(problem), brute_force(problem)
    if best.choice is None:
        assert solution.status is Status.INFEASIBLE
        return
    assert solution.choice is not None
    assert solution.certificate is not None
    assert problem.rows.broken(solution.choice) == []
    assert solution.loss >= best.loss
    assert bound_of(solution) <= best.loss
    assert lower_bound(scaled(problem), solution.certificate.multipliers) == solution.certificate.lower_bound
    assert bound_of(solution) == pytest.approx(bound_of(SOLVERS["milp"](problem)), abs=1e-9)


def test_what_cannot_be_kept_is_explained() -> None:
    solution = solve(replace(worked(16), rules=(count([0, 1, 2], [2], exactly=3), forbid((0, 2), (1, 2)))))
    assert (solution.status, solution.choice) == (Status.INFEASIBLE, None)
    assert len(solution.blocking) == 2
    plain = solve(worked(7))
    assert (plain.status, plain.smallest_limit) == (Status.INFEASIBLE, (8,))


def test_no_time_still_gives_the_choice_of_the_hull() -> None:
    problem = random_problem("layers", 1, 60, 7)
    solution, hull = solve(problem, time_limit=0.0), SOLVERS["hull"](problem)
    assert solution.status is Status.LIMIT
    assert solution.loss == hull.loss
    assert solution.certificate is not None
    assert solution.certificate.multipliers == (Fraction(0),)
    nothing = solve(hawq("size", "latency", quarter=2), time_limit=0.0)
    assert (nothing.status, nothing.choice, nothing.certificate) == (Status.LIMIT, None, None)


def test_published_problems_of_two_resources() -> None:
    problem = hawq("size", "bops", quarter=2)
    solution = solve(problem)
    assert solution.choice is not None
    assert problem.rows.broken(solution.choice) == []
    assert solution.loss == pytest.approx(SOLVERS["dp"](problem).loss, rel=1e-3)
