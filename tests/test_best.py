from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitplan.solvers import SOLVERS, ChoiceProblem, Status, best, brute_force, count, scaled
from problems import FAMILIES, crossed, random_problem, ruled, worked


def scaled_loss(problem: ChoiceProblem, choice: Any) -> int:
    return int(scaled(problem).loss[np.arange(problem.items), choice].sum())


@pytest.mark.parametrize(
    ("problem", "solver", "reason"),
    [
        (worked(12), "core", "one limit and no rules: exact by a minimal core"),
        (replace(worked(12), rules=(count([0], [0], at_most=1),)), "dp", "1 resources, 1 rules and 9 pairs .*: exact by lists"),
        (crossed(8), "dp", "2 resources, 0 rules and 48 pairs of item and option: exact by lists"),
        (crossed(150), "milp", "too many states for exact lists. HiGHS: "),
        (crossed(3500), "lagrangian", "too many for an exact search, near by relaxation"),
    ],
    ids=["one limit", "a rule", "two limits", "many items", "very many items"],
)
def test_it_picks_by_structure_and_size_and_says_why(problem: ChoiceProblem, solver: str, reason: str) -> None:
    solution = best.solve(problem, time_limit=4.0 if problem.items > 100 else None)
    assert solution.choice is not None
    assert not problem.rows.broken(solution.choice)
    if solution.solver == "dp" and solver == "milp":  # HiGHS had no time to find anything better
        assert "found nothing better" in solution.reason
        return
    assert solution.solver == solver
    assert re.search(reason, solution.reason)


@settings(deadline=None, max_examples=100)
@given(
    family=st.sampled_from(list(FAMILIES)),
    seed=st.integers(0, 2**31),
    items=st.integers(1, 6),
    options=st.integers(1, 4),
    power=st.integers(-30, 12),
)
def test_small_problems_of_any_shape(family: str, seed: int, items: int, options: int, power: int) -> None:
    """Equal to every choice tried; items in another order, losses in another unit and a larger limit as they should be."""
    problem = ruled(family, seed, items, options)
    solution, truth = best.solve(problem), brute_force(problem)
    if truth.choice is None:
        assert solution.status is Status.INFEASIBLE
        return
    assert solution.status is Status.OPTIMAL
    assert scaled_loss(problem, solution.choice) <= scaled_loss(problem, truth.choice)

    in_another_unit = best.solve(replace(problem, loss=problem.loss * 2.0**power))
    assert in_another_unit.choice is not None
    assert solution.choice is not None
    assert in_another_unit.choice.tolist() == solution.choice.tolist()

    order = np.random.default_rng(seed).permutation(items)
    place = np.argsort(order)
    rules = tuple(replace(rule, item=place[rule.item]) for rule in problem.rules)
    permuted = ChoiceProblem(
        problem.loss[order], problem.cost[:, order], problem.limit, problem.allowed[order], problem.floor, rules
    )
    other = best.solve(permuted)
    assert scaled_loss(permuted, other.choice) == scaled_loss(problem, solution.choice)

    roomier = best.solve(replace(problem, limit=problem.limit + 1 + problem.limit // 7))
    assert scaled_loss(problem, roomier.choice) <= scaled_loss(problem, solution.choice)


@pytest.mark.parametrize("family", ["layers", "wild", "whole", "twins"])
def test_three_ways_to_the_optimum_of_a_large_problem(family: str) -> None:
    """The minimal core, the lists over all items and HiGHS, which have nothing in common but the tables."""
    problem = random_problem(family, 11, 300, 7)
    core, lists, highs = (SOLVERS[name](problem) for name in ("core", "dp", "milp"))
    assert core.status is lists.status is Status.OPTIMAL
    assert scaled_loss(problem, core.choice) == scaled_loss(problem, lists.choice)
    assert core.loss * (1 - 1e-12) <= highs.loss <= core.loss + 1e-7 * problem.loss.max()


def test_a_time_limit_is_shared_out_and_kept() -> None:
    solution = best.solve(crossed(400), time_limit=1.0)
    assert solution.choice is not None
    assert solution.seconds < 10
    assert solution.proof == "bound"
