from __future__ import annotations

import math
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from bitplan.solvers import ChoiceProblem, Status, brute_force, certify, count, hull, lagrangian, merge_tied, scaled
from bitplan.solvers.lagrangian import relax, relax_by_cuts
from problems import FAMILIES, HAWQ_RESOURCES, HAWQ_TIES, crossed, hawq, random_problem, ruled


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("family", FAMILIES)
def test_the_optimum_lies_between_its_bound_and_its_loss(family: str, seed: int) -> None:
    problem = ruled(family, seed, 5, 4)
    solution, truth = lagrangian.solve(problem), brute_force(problem)
    assert (solution.choice is None) == (truth.choice is None)
    if truth.choice is None:
        assert solution.smallest_limit == truth.smallest_limit
        return
    assert solution.certificate is not None
    assert solution.choice is not None
    assert not problem.rows.broken(solution.choice)
    best = int(scaled(problem).loss[np.arange(5), truth.choice].sum())
    assert solution.certificate.lower_bound <= best
    assert solution.loss >= truth.loss * (1 - 1e-12)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_all_three_limits_of_a_published_problem(quarter: int) -> None:
    problem, _ = merge_tied(hawq(*HAWQ_RESOURCES, quarter=quarter), HAWQ_TIES)
    solution, best = lagrangian.solve(problem), brute_force(problem)
    assert solution.certificate is not None
    assert len(solution.certificate.multipliers) == 3
    assert float(solution.certificate.lower_bound / solution.certificate.loss_scale) <= best.loss
    assert best.loss <= solution.loss <= 1.5 * best.loss


def test_multipliers_are_those_of_the_relaxation() -> None:
    from scipy.optimize import linprog

    problem = crossed(40)
    one_each = np.kron(np.eye(40), np.ones(6))
    relaxed = linprog(problem.loss.ravel(), A_ub=problem.cost.reshape(2, -1), b_ub=problem.limit, A_eq=one_each, b_eq=np.ones(40))
    certificate = lagrangian.solve(problem).certificate
    assert certificate is not None
    assert float(certificate.lower_bound / certificate.loss_scale) == pytest.approx(relaxed.fun, rel=1e-7)
    assert all(multiplier > 0 for multiplier in certificate.multipliers)


def bound(problem: ChoiceProblem, multipliers: list[Fraction]) -> float:
    choice = lagrangian.solve(problem).choice
    assert choice is not None
    certificate = certify(problem, choice, multipliers)
    return float(certificate.lower_bound / certificate.loss_scale)


@pytest.mark.parametrize("family", ["layers", "wild", "whole", "wide"])
def test_cutting_planes_find_what_highs_finds(family: str) -> None:
    """Two ways to the same multipliers' bound: the linear programme of all shares, and cuts on the dual."""
    first, second = (random_problem(family, seed, 50, 5, holes=False) for seed in (1, 2))
    cost = np.concatenate([first.cost, second.cost])
    limit = (cost.min(axis=2).sum(axis=1) + cost.max(axis=2).sum(axis=1)) // 2
    rules = (count(range(50), [0], at_least=5), count(range(25), [4], at_most=3))
    problem = ChoiceProblem(first.loss, cost, limit, first.allowed, rules=rules)
    tables = scaled(problem)
    whole, cuts = relax(tables, math.inf), relax_by_cuts(tables, math.inf)
    assert cuts.converged
    assert bound(problem, cuts.multipliers) == pytest.approx(bound(problem, whole.multipliers), rel=1e-5)


def test_cutting_planes_find_the_multiplier_of_one_limit() -> None:
    problem = random_problem("layers", 3, 200, 6)
    tables = scaled(problem)
    exact = bound(problem, [hull.relax(tables).multiplier])
    assert bound(problem, relax_by_cuts(tables, math.inf).multipliers) == pytest.approx(exact, rel=1e-6)
    assert bound(problem, relax_by_cuts(tables, math.inf).multipliers) <= exact


def test_nothing_binds() -> None:
    problem = replace(crossed(30), limit=np.array([10**6, 10**6]))
    for relaxation in (relax(scaled(problem), math.inf), relax_by_cuts(scaled(problem), math.inf)):
        assert relaxation.multipliers == [0, 0]
        assert relaxation.choice.tolist() == problem.loss.argmin(axis=1).tolist()
    assert lagrangian.solve(problem).proof == "multipliers"


def test_a_gap_of_many_items_is_small() -> None:
    solution = lagrangian.solve(crossed(5000))
    assert solution.certificate is not None
    assert solution.certificate.gap / solution.certificate.loss_scale < 1e-4 * solution.loss


def test_out_of_time_is_not_infeasible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lagrangian, "near_choice", lambda *_: (None, False))
    solution = lagrangian.solve(crossed(30))
    assert (solution.status, solution.choice, solution.smallest_limit) == (Status.LIMIT, None, None)


def test_a_relaxation_out_of_time_still_gives_multipliers() -> None:
    tables = scaled(crossed(4000))
    relaxation = relax(tables, time.perf_counter() - 1)
    assert not relaxation.converged
    assert all(multiplier >= 0 for multiplier in relaxation.multipliers)


def test_neither_scipy_nor_torch_is_loaded_before_it_is_needed() -> None:
    code = "import sys, bitplan.solvers; sys.exit(bool({'scipy', 'torch', 'cvxpy', 'pulp'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
