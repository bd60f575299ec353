from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from bitplan.solvers import SOLVERS, ChoiceProblem, Status, brute_force, count, recompute
from bitplan.solvers.chains import drop_only, monotone_chains
from problems import Ints, make, padded, random_problem, worked


def every_chain(problem: ChoiceProblem, limits: Ints, weights: list[float]) -> float:
    """The least weighted loss of all chains, by trying every one."""
    at = [replace(problem, limit=limit) for limit in limits]
    fitting = []
    for plan in at:
        options = [np.flatnonzero(row).tolist() for row in plan.allowed]
        choices = [np.array(choice) for choice in itertools.product(*options)]
        fitting.append([(recompute(plan, c)[0], c) for c in choices if not plan.rows.broken(c)])
    best = np.inf
    for chain in itertools.product(*fitting):
        if all(np.all(lower[1] <= upper[1]) for upper, lower in itertools.pairwise(chain)):
            best = min(best, sum(weight * loss for weight, (loss, _) in zip(weights, chain, strict=True)))
    return float(best)


@pytest.mark.parametrize("seed", range(5))
def test_three_budgets_against_every_chain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = make(rng.integers(0, 30, (3, 3)), rng.integers(0, 20, (3, 3)), 0, allowed=rng.random((3, 3)) > [0, 0.2, 0.2])
    least = int(np.where(problem.allowed, problem.cost[0], 99).min(axis=1).sum())
    limits, weights = np.array([[least + 20], [least + 10], [least + 2]]), [1.0, 0.5, 2.0]
    chains, invert = monotone_chains(problem, limits, weights=weights)
    assert chains.loss.shape == (3, 10)  # C(3 + 3 - 1, 3)
    solution = SOLVERS["dp"](chains)
    known = every_chain(problem, limits, weights)
    assert np.isfinite(known) == (solution.choice is not None)
    if solution.choice is None:
        return
    assert solution.loss == known
    plans = invert(solution.choice)
    assert plans.shape == (3, 3)
    assert np.all(plans[1:] <= plans[:-1])
    answers = [recompute(problem, plan) for plan in plans]
    assert sum(weight * loss for weight, (loss, _) in zip(weights, answers, strict=True)) == solution.loss
    assert np.concatenate([cost for _, cost in answers]).tolist() == solution.cost.tolist()


def test_plans_made_one_by_one_need_not_be_a_chain() -> None:
    """At 4 the first item takes everything; at 2 it cannot have its only useful level, and the second one rises."""
    problem = padded([[(0, 10.0), (4, 0.0)], [(0, 5.0), (2, 1.0)]], 4)
    alone = [brute_force(replace(problem, limit=np.array([limit]))) for limit in (4, 2)]
    assert [solution.loss for solution in alone] == [5.0, 11.0]
    assert [solution.choice.tolist() for solution in alone if solution.choice is not None] == [[1, 0], [0, 1]]
    chains, invert = monotone_chains(problem, [[4], [2]])
    together = SOLVERS["best"](chains)
    assert together.choice is not None
    assert together.loss == 20.0  # 5 + 15: less than the 11 + 11 of keeping the second item's level in both
    assert np.all(np.diff(invert(together.choice), axis=0) <= 0)
    late, invert = monotone_chains(problem, [[4], [2]], weights=[0.0, 1.0])
    solution = SOLVERS["best"](late)
    assert solution.choice is not None
    assert solution.loss == 11.0
    assert invert(solution.choice)[1].tolist() == [0, 1]


def test_two_resources_floors_and_rules_hold_in_every_plan() -> None:
    rng = np.random.default_rng(5)
    problem = make(rng.integers(0, 30, (3, 3)), rng.integers(0, 9, (2, 3, 3)), 0, 0)
    problem = replace(
        problem, limit=np.array([20, 20]), floor=np.array([3, 0]), rules=(count(range(3), (0,), at_most=2, name="few"),)
    )
    limits = np.array([[20, 17], [14, 12]])
    chains, invert = monotone_chains(problem, limits)
    assert chains.limit.tolist() == [20, 17, 14, 12]
    assert chains.floor.tolist() == [3, 0, 3, 0]
    assert [rule.name for rule in chains.rules] == ["few (plan 0)", "few (plan 1)"]
    assert SOLVERS["dp"](chains).loss == every_chain(problem, limits, [1.0, 1.0])
    for choice in itertools.product(range(6), repeat=3):
        plans = invert(np.array(choice))
        totals = np.array([problem.rows.totals(plan) for plan in plans])
        assert chains.rows.totals(np.array(choice)).tolist() == [*totals[:, :2].ravel().tolist(), *totals[:, 2].tolist()]


def test_one_plan_is_the_problem_itself() -> None:
    problem = random_problem("layers", 1, 8, 4)
    chains, invert = monotone_chains(problem, problem.limit[None])
    solution, straight = SOLVERS["best"](chains), SOLVERS["best"](problem)
    assert solution.choice is not None
    assert straight.choice is not None
    assert solution.loss == straight.loss
    assert invert(solution.choice).tolist() == [straight.choice.tolist()]


def test_what_chains_refuse() -> None:
    for limits in ([[8], [9]], [[9], [8], [10]]):
        with pytest.raises(ValueError, match="list the plans from the largest to the smallest"):
            monotone_chains(worked(9), limits)
    for shape in ([8, 9], [[8, 9]], np.zeros((0, 1), dtype=int)):
        with pytest.raises(ValueError, match=r"limits must have the shape \(plans, 1\)"):
            monotone_chains(worked(9), shape)
    for weights in ([1.0], [1.0, -1.0], [1.0, np.nan]):
        with pytest.raises(ValueError, match="weights must be 2 numbers >= 0"):
            monotone_chains(worked(9), [[9], [8]], weights=weights)
    wide = random_problem("wild", 0, 2, 12, holes=False)
    with pytest.raises(ValueError, match="10 plans over 12 levels make more than"):
        monotone_chains(wide, np.full((10, 1), 99))


def test_dropping_never_rises() -> None:
    problem = replace(worked(14), rules=(count((0, 1, 2), (2,), at_least=1),))
    loaded = SOLVERS["best"](problem).choice
    assert loaded is not None
    assert loaded.tolist() == [2, 2, 0]
    smaller = drop_only(replace(problem, limit=np.array([13])), loaded)
    assert smaller.allowed.tolist() == [[True] * 3, [True] * 3, [True, False, False]]
    assert smaller.rules == problem.rules
    solution = brute_force(smaller)
    assert solution.choice is not None
    assert solution.choice.tolist() == [2, 1, 0]  # from scratch it would be (2, 1, 1), which loads a level
    assert SOLVERS["best"](smaller).loss == solution.loss
    assert brute_force(drop_only(replace(problem, limit=np.array([7])), loaded)).status is Status.INFEASIBLE


def test_dropping_starts_from_a_choice() -> None:
    problem = make([[1.0, 2.0]], [[1, 2]], 2, allowed=[[True, False]])
    with pytest.raises(ValueError, match="takes an option that is not allowed"):
        drop_only(problem, np.array([1]))
    for wrong in (np.array([2]), np.array([-1]), np.array([0, 0])):
        with pytest.raises(ValueError, match="a choice for this problem is 1 options below 2"):
            drop_only(problem, wrong)
