from __future__ import annotations

import numpy as np
import pytest

from bitplan.solvers import SOLVERS, Status, brute_force, count, frontier, scaled
from bitplan.solvers.certificate import lower_bound
from bitplan.solvers.closed_form import solve
from bitplan.solvers.problem import ChoiceProblem
from bitplan.solvers.water_filling import reverse_water_filling
from problems import FAMILIES, make, random_problem, worked

# --- Worked examples: BAQ (arXiv 2506.05664) and the textbook of independent Gaussian sources.


def test_tables_that_follow_the_law_are_solved_like_the_law() -> None:
    """Matrices of three sizes, whole bits: the choice is the whole bits."""
    rng = np.random.default_rng(2)
    sizes, coefficient = rng.choice([100, 200, 400], 40), rng.lognormal(0, 2, 40)
    bits = np.arange(10)
    problem = make(coefficient[:, None] * 4.0**-bits, sizes[:, None] * bits, int(sizes.sum()) * 5)
    filling = reverse_water_filling(coefficient, sizes, 5.0 * sizes.sum(), cap=9)
    solution = solve(problem)
    assert solution.choice is not None
    assert np.abs(solution.choice - filling.bits).max() <= 1
    assert solution.loss <= brute_force_bound(problem) * 1.02


def brute_force_bound(problem: ChoiceProblem) -> float:
    hull = SOLVERS["hull"](problem).certificate
    assert hull is not None
    return float(hull.lower_bound / hull.loss_scale)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("family", FAMILIES)
def test_choices_keep_the_limit_and_bounds_are_true(family: str, seed: int) -> None:
    problem = random_problem(family, seed, 7, 5)
    solution, best = solve(problem), brute_force(problem)
    assert solution.certificate is not None
    assert solution.cost[0] <= problem.limit[0]
    assert solution.loss >= best.loss * (1 - 1e-12)
    scale = solution.certificate.loss_scale  # losses are rounded to integers by half of one each
    assert float(solution.certificate.lower_bound / scale) <= best.loss * (1 + 1e-12) + problem.items / (2 * scale)
    assert lower_bound(scaled(problem), solution.certificate.multipliers) == solution.certificate.lower_bound


def test_layers_are_solved_nearly_as_well_as_on_the_hull() -> None:
    for seed in range(5):
        problem = random_problem("layers", seed, 300, 8)
        ours, hull = solve(problem), SOLVERS["hull"](problem)
        assert ours.loss <= hull.loss * 1.01
        assert ours.certificate is not None
        assert float(ours.certificate.lower_bound / ours.certificate.loss_scale) >= 0.98 * brute_force_bound(problem)


def test_every_vertex_of_the_hull_fits_its_own_budget() -> None:
    """Budgets that the cheapest steps meet exactly: none is missed by rounding, and none exceeded."""
    problem = random_problem("layers", 3, 30, 6)
    for budget in frontier(problem).budgets.tolist():
        solution = solve(ChoiceProblem(problem.loss, problem.cost, np.array([budget]), problem.allowed))
        assert solution.choice is not None
        assert solution.cost[0] <= budget
    dearest = solve(ChoiceProblem(problem.loss, problem.cost, np.array([2**50]), problem.allowed))
    assert dearest.status is Status.OPTIMAL
    assert dearest.loss == pytest.approx(float(np.where(problem.allowed, problem.loss, np.inf).min(axis=1).sum()), rel=1e-15)


def test_losses_of_zero_and_items_without_a_choice() -> None:
    solution = solve(make([[4.0, 0.0], [3.0, 3.0], [1.0, 0.0]], [[1, 2], [5, 5], [1, 9]], 9))
    assert solution.choice is not None
    assert solution.choice[[0, 2]].tolist() == [1, 0]
    assert solve(make([[1.0, 1.0]], [[3, 3]], 3)).status is Status.OPTIMAL


def test_only_one_limit_is_taken() -> None:
    problem = worked(12)
    with pytest.raises(ValueError, match="use `best`"):
        solve(make(problem.loss, np.array([problem.cost[0]] * 2), 12, 12))
    ruled = ChoiceProblem(problem.loss, problem.cost, problem.limit, problem.allowed, rules=(count([0], [0], at_most=0),))
    with pytest.raises(ValueError, match="closed_form solves problems with one limit and nothing else, not 1 rules"):
        solve(ruled)
    none = solve(worked(7))
    assert (none.status, none.smallest_limit, none.blocking) == (Status.INFEASIBLE, (8,), ("the limit of resource 0",))
