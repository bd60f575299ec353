from __future__ import annotations

import math
import subprocess
import sys
import time

import numpy as np
import pytest

from bitplan.solvers import ChoiceProblem, Status, brute_force, hull, merge_tied, scaled
from bitplan.solvers.several import relax_several, repair, search_several
from problems import FAMILIES, HAWQ_RESOURCES, HAWQ_TIES, hawq, make, random_problem


def two_resources(family: str, seed: int, items: int, options: int, share: float) -> ChoiceProblem:
    """Two problems of a family on one table of losses; limits `share` of those of the two."""
    first, second = (random_problem(family, 2 * seed + k, items, options, holes=False) for k in range(2))
    limits = [int(share * problem.limit[0]) for problem in (first, second)]
    return make(first.loss, [first.cost[0], second.cost[0]], *limits)


def crossed(items: int) -> ChoiceProblem:
    """Losses and both costs unrelated, both limits at three fifths of what chance would spend: both bind."""
    rng = np.random.default_rng(items)
    return make(rng.random((items, 6)), rng.integers(1, 1000, (2, items, 6)), 300 * items, 300 * items)


@pytest.mark.parametrize("share", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_against_every_choice(family: str, seed: int, share: float) -> None:
    problem = two_resources(family, seed, 6, 4, share)
    solution, truth = hull.solve(problem), brute_force(problem)
    assert (solution.choice is None) == (truth.choice is None)
    if truth.choice is None:
        assert solution.smallest_limit == truth.smallest_limit
        return
    assert solution.certificate is not None
    assert np.all(solution.cost <= problem.limit)
    best = int(scaled(problem).loss[np.arange(6), truth.choice].sum())
    assert solution.certificate.lower_bound <= best
    assert solution.loss >= truth.loss * (1 - 1e-12)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_all_three_limits_of_a_published_problem(quarter: int) -> None:
    problem, _ = merge_tied(hawq(*HAWQ_RESOURCES, quarter=quarter), HAWQ_TIES)
    solution, best = hull.solve(problem), brute_force(problem)
    assert solution.certificate is not None
    assert len(solution.certificate.multipliers) == 3
    assert float(solution.certificate.lower_bound / solution.certificate.loss_scale) <= best.loss
    assert best.loss <= solution.loss <= 1.5 * best.loss


def test_multipliers_are_those_of_the_relaxation() -> None:
    from scipy.optimize import linprog

    problem = crossed(40)
    certificate = hull.solve(problem).certificate
    assert certificate is not None
    one_each = np.kron(np.eye(40), np.ones(6))
    relaxed = linprog(problem.loss.ravel(), A_ub=problem.cost.reshape(2, -1), b_ub=problem.limit, A_eq=one_each, b_eq=np.ones(40))
    assert float(certificate.lower_bound / certificate.loss_scale) == pytest.approx(relaxed.fun, rel=1e-7)
    assert all(multiplier > 0 for multiplier in certificate.multipliers)


def test_a_gap_of_many_items_is_small() -> None:
    solution = hull.solve(crossed(300))
    assert solution.certificate is not None
    assert solution.certificate.gap / solution.certificate.loss_scale < 0.02 * solution.loss


def test_limits_that_exclude_each_other() -> None:
    """Each could be kept alone: the answer is that no choice keeps both, and what either would have to be."""
    problem = make([[0.0, 0.0], [0.0, 0.0]], [[[1, 5], [1, 5]], [[5, 1], [5, 1]]], 5, 5)
    solution = hull.solve(problem)
    assert (solution.status, solution.choice, solution.smallest_limit) == (Status.INFEASIBLE, None, (10, 10))
    assert math.isinf(solution.loss)


def test_one_limit_that_nothing_keeps() -> None:
    problem = make([[0.0, 0.0], [0.0, 0.0]], [[[3, 5], [3, 5]], [[5, 1], [5, 1]]], 5, 10)
    assert hull.solve(problem).smallest_limit == (6, 2)


# Only (1, 1) keeps both limits, and from (0, 0) each single step there makes things worse.
VALLEY = make([[0.0, 1.0], [0.0, 1.0]], [[[6, 0], [0, 5]], [[0, 5], [6, 0]]], 5, 5)


def test_what_repair_cannot_find_is_searched_for() -> None:
    tables = scaled(VALLEY)
    assert repair(tables, np.array([0, 0])) is None
    choice, sure = search_several(tables, math.inf)
    assert sure
    assert choice is not None
    assert choice.tolist() == [1, 1]


def test_repair_takes_the_move_that_loses_least_for_its_relief() -> None:
    tables = scaled(make([[0.0, 4.0], [0.0, 3.0], [0.0, 8.0]], [[[4, 1], [4, 2], [4, 0]]], 10))
    choice = repair(tables, np.array([0, 0, 0]))
    assert choice is not None
    # Excess 2: relief 2 for 4, for 3, for 8; the second is cheapest.
    assert choice.tolist() == [0, 1, 0]


def test_out_of_time_is_not_infeasible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hull, "repair", lambda tables, choice: None)
    monkeypatch.setattr(hull, "search_several", lambda tables, deadline: (None, False))
    solution = hull.solve(VALLEY)
    assert (solution.status, solution.choice, solution.smallest_limit) == (Status.LIMIT, None, None)


def test_a_relaxation_out_of_time_still_gives_multipliers() -> None:
    problem = two_resources("layers", 2, 4000, 8, 0.9)
    choice, multipliers = relax_several(scaled(problem), time.perf_counter() - 1)
    assert all(multiplier >= 0 for multiplier in multipliers)
    assert problem.allowed[np.arange(4000), choice].all()


def test_neither_scipy_nor_torch_is_loaded_before_it_is_needed() -> None:
    code = "import sys, bitplan.solvers; sys.exit(bool({'scipy', 'torch'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
