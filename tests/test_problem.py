from __future__ import annotations

import itertools
import math
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from bitplan.solvers import ChoiceProblem, Status, brute_force, recompute
from bitplan.solvers.problem import least_costs, without_choice
from problems import FAMILIES, make, random_problem, worked

GOOD: dict[str, Any] = {
    "loss": np.array([[2.0, 1.0], [4.0, 3.0]]),
    "cost": np.array([[[1, 2], [3, 4]]]),
    "limit": np.array([5]),
    "allowed": np.array([[True, True], [False, True]]),
}


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("loss", np.zeros((0, 2)), r"loss must have the shape \(items, options\)"),
        ("loss", np.zeros(2), r"loss must have the shape \(items, options\)"),
        ("limit", np.array(5), r"limit must have the shape \(resources,\)"),
        ("limit", np.zeros(0, dtype=int), r"limit must have the shape \(resources,\)"),
        ("cost", np.zeros((2, 2), dtype=int), r"cost must have the shape \(1, 2, 2\)"),
        ("allowed", np.ones((2, 3), dtype=bool), "allowed must be booleans"),
        ("allowed", np.ones((2, 2)), "allowed must be booleans"),
        ("cost", np.array([[[1.0, 2.0], [3.0, 4.0]]]), "cost must be whole numbers .* not float64"),
        ("limit", np.array([5.5]), "limit must be whole numbers"),
        ("allowed", np.array([[True, True], [False, False]]), "item 1 has no allowed option"),
        ("loss", np.array([[2.0, math.nan], [4.0, 3.0]]), "loss of item 0, option 1 is nan; mark an undefined pair"),
        ("loss", np.array([[2.0, math.inf], [4.0, 3.0]]), "loss of item 0, option 1 is inf"),
        ("loss", np.array([[2.0, 1.0], [4.0, -3.0]]), "loss of item 1, option 1 is -3.0; add a constant"),
        ("cost", np.array([[[1, -2], [3, 4]]]), r"cost \(resource 0\) of item 0, option 1 is -2; add a constant"),
        ("cost", np.array([[[1.0, 2.5], [3.0, 4.0]]]), r"\(resource 0, item 0, option 1 is 2.5\); choose a smaller unit"),
        ("floor", np.array([6]), "resource 0 must cost at least 6 and at most 5: no choice can"),
        ("floor", np.array([6, 6]), r"floor must have the shape \(1,\) of limit"),
        ("floor", np.array([0.5]), "floor must be whole numbers"),
        ("loss", np.array([[2.0**60, 1.0], [4.0, 3.0]]), "add up to less than 2\\*\\*60; measure them in a larger unit"),
        ("cost", np.array([[[1, 2], [3, 2**59]]]), "add up to less than 2\\*\\*60"),
        ("limit", np.array([2**63], dtype=np.uint64), r"limit and floor must stay below 2\*\*62"),
    ],
)
def test_misuse_raises_at_the_door(name: str, value: Any, sentence: str) -> None:
    ChoiceProblem(**GOOD)
    with pytest.raises(ValueError, match=sentence):
        ChoiceProblem(**{**GOOD, name: value})


def test_a_problem_keeps_copies_that_cannot_be_written() -> None:
    given = {name: table.copy() for name, table in GOOD.items()}
    problem = ChoiceProblem(**given)
    given["cost"][:] = 99
    assert problem.cost[0, 0, 0] == 1
    for table in (problem.loss, problem.cost, problem.limit, problem.allowed):
        with pytest.raises(ValueError, match="read-only"):
            table[...] = 0
    with pytest.raises(FrozenInstanceError):
        problem.loss = given["loss"]  # type: ignore[misc]
    assert (problem.items, problem.resources) == (2, 1)


def test_entries_that_are_not_allowed_are_never_read() -> None:
    loss = np.where(GOOD["allowed"], GOOD["loss"], math.nan)
    cost = np.where(GOOD["allowed"], GOOD["cost"], -(2**62))
    problem = ChoiceProblem(loss, cost, GOOD["limit"], GOOD["allowed"])
    assert brute_force(problem).loss == brute_force(ChoiceProblem(**GOOD)).loss == 5.0
    assert least_costs(problem) == (5,)


def test_recompute_adds_up_from_the_tables() -> None:
    problem = make([[0.1], [0.2], [0.3], [1e16], [1.0]], np.arange(10).reshape(2, 5, 1), 99, 99)
    loss, cost = recompute(problem, np.zeros(5, dtype=np.int64))
    assert loss == math.fsum([0.1, 0.2, 0.3, 1e16, 1.0]) == 1e16 + 2
    assert cost.tolist() == [10, 35]


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        (np.array([0]), "2 whole numbers"),
        (np.array([0.0, 1.0]), "2 whole numbers"),
        (np.array([0, 2]), "not allowed"),
        (np.array([-1, 1]), "not allowed"),
        (np.array([0, 0]), "not allowed"),
    ],
)
def test_recompute_refuses_what_is_no_choice(choice: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        recompute(ChoiceProblem(**GOOD), choice)


@pytest.mark.parametrize("family", FAMILIES)
def test_brute_force_agrees_with_a_plain_loop(family: str) -> None:
    problem = random_problem(family, 1, 4, 3)
    best = math.inf
    for picks in itertools.product(range(3), repeat=4):
        if all(problem.allowed[i, j] for i, j in enumerate(picks)):
            spent = sum(int(problem.cost[0, i, j]) for i, j in enumerate(picks))
            if spent <= problem.limit[0]:
                best = min(best, math.fsum(problem.loss[i, j] for i, j in enumerate(picks)))
    solution = brute_force(problem)
    assert solution.loss == pytest.approx(best, rel=1e-15)
    assert (solution.status, solution.proof, solution.certificate) == (Status.OPTIMAL, "search", None)


def test_brute_force_says_what_limit_would_do() -> None:
    solution = brute_force(worked(7))
    assert solution.choice is None
    assert solution.loss == math.inf
    assert (solution.status, solution.smallest_limit, solution.cost.tolist()) == (Status.INFEASIBLE, (8,), [0])


def test_each_smallest_limit_leaves_the_other_limits_as_they_are() -> None:
    # Choices cost (1, 9), (5, 5) or (9, 1).
    tables: Any = ([[0.0, 0.0, 0.0]], [[[1, 5, 9]], [[9, 5, 1]]])
    assert brute_force(make(*tables, 4, 6)).smallest_limit == (5, 9)
    # No limit of the second helps while the first allows nothing at all.
    assert brute_force(make(*tables, 0, 6)).smallest_limit == (5, 1)


def test_brute_force_refuses_what_would_take_for_ever() -> None:
    with pytest.raises(ValueError, match="too many to try; use a solver from SOLVERS"):
        brute_force(random_problem("wild", 0, 12, 6, holes=False))


def test_an_answer_without_a_choice_is_infeasible_or_not_found() -> None:
    assert without_choice(worked(7), (8,), "dp", 0.0).status is Status.INFEASIBLE
    assert without_choice(worked(9), None, "dp", 0.0).status is Status.LIMIT


def test_a_status_is_a_sentence() -> None:
    assert all(len(status.value.split()) > 5 for status in Status)


def test_other_limits_share_the_tables_and_are_checked() -> None:
    problem = worked(12)
    other = problem.within(np.array([9]))
    assert other.loss is problem.loss
    assert other.cost is problem.cost
    assert (other.limit.tolist(), problem.limit.tolist()) == ([9], [12])
    assert not other.limit.flags.writeable
    assert brute_force(other).loss == brute_force(worked(9)).loss
    for limit, message in (([1, 2], "of what it replaces"), ([1.5], "whole numbers"), ([2**62], "below")):
        with pytest.raises(ValueError, match=message):
            problem.within(np.array(limit))
