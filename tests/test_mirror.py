from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from bitplan.solvers import ChoiceProblem, Status, brute_force, core, count, hull
from bitplan.solvers.mirror import least_cost, mirror, tolerance
from problems import FAMILIES, make, random_problem

# methods_core.md, section 9.4: three layers, sizes and errors; the reference takes the middle option of each.
SIZES = [[10, 20, 40], [100, 200, 400], [30, 60, 120]]
ERRORS = [[0.8, 0.4, 0.1], [1.0, 0.5, 0.2], [0.6, 0.3, 0.1]]
LGRECO = make(ERRORS, SIZES, 0)


def least_by_trying(problem: ChoiceProblem, loss_limit: Fraction, resource: int = 0) -> int | None:
    """The least cost of a choice whose loss, added up exactly, is within the limit, among those that keep all but the limit
    of the resource."""
    options = [np.flatnonzero(row).tolist() for row in problem.allowed]
    rows, best = np.arange(problem.items), None
    exact = [[Fraction(lost) for lost in row] for row in problem.loss.tolist()]
    free = problem.limit.copy()
    free[resource] = 2**61
    bounds = replace(problem, limit=free).rows
    for picks in itertools.product(*options):
        if sum(row[pick] for row, pick in zip(exact, picks, strict=True)) <= loss_limit:
            choice = np.array(picks)
            spent = int(problem.cost[resource, rows, choice].sum())
            if (best is None or spent < best) and not bounds.broken(choice):
                best = spent
    return best


@pytest.mark.parametrize(("loss_limit", "choice", "cost"), [(1.2, (2, 0, 2), 260), (1.25 * 1.2, (2, 0, 1), 200)])
def test_the_worked_example(loss_limit: float, choice: tuple[int, ...], cost: int) -> None:
    found = least_cost(LGRECO, loss_limit)
    assert found.choice is not None
    assert (tuple(found.choice.tolist()), found.cost, found.status) == (choice, cost, Status.OPTIMAL)
    assert found.lower_bound <= cost == found.lower_bound + found.gap


def test_a_plan_that_meets_the_limit_in_decimals_is_not_lost() -> None:
    assert math.fsum([0.8, 0.4]) > 1.2  # what decides is 0.8 + 0.4 = 1.2 on paper
    pair = make([[0.8, 0.1], [0.4, 0.1]], [[1, 9], [1, 9]], 0)
    assert least_cost(pair, 1.2).cost == 2
    assert least_cost(pair, 1.2 - 1e-12).cost == 10
    tenths = make([[0.1, 0.0]] * 10, [[0, 1]] * 10, 0)
    assert least_cost(tenths, 1.0).cost == 0
    assert least_cost(tenths, 0.9).cost == 1
    assert least_cost(tenths, 0.9 - 1e-14).cost == 2


@pytest.mark.parametrize("items", [1, 7, 40])
def test_decimals_never_lose_the_plan_that_the_limit_was_read_off(items: int) -> None:
    rng = np.random.default_rng(items)
    for _ in range(20):
        digits = rng.integers(1, 10**6, items)
        loss = np.array([[float(f"{digit}e-6"), 0.0] for digit in digits.tolist()])
        limit = float(Fraction(int(digits.sum()), 10**6))
        problem = make(loss, np.tile([0, 1], (items, 1)), 0)
        assert least_cost(problem, limit).cost == 0
        assert least_cost(problem, limit - 1e-9).cost == 1


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_every_choice_tried(family: str, seed: int) -> None:
    problem = random_problem(family, seed, 1 + seed % 6, 2 + seed % 3)
    best = brute_force(problem)
    loss_limit = best.loss * (1 + 0.3 * (seed % 2))
    found = least_cost(problem, loss_limit)
    exact = Fraction(loss_limit)
    allowance = tolerance(problem, loss_limit)
    assert allowance <= exact / 10**14 + Fraction(5, 10**324)
    least, least_let_in = least_by_trying(problem, exact), least_by_trying(problem, exact + allowance)
    assert found.status is Status.OPTIMAL
    assert least_let_in is not None
    assert least_let_in <= found.cost <= (best.cost[0] if least is None else least)
    assert found.lower_bound <= least_let_in
    assert found.choice is not None
    rows = np.arange(problem.items)
    assert problem.allowed[rows, found.choice].all()
    assert found.loss == math.fsum(problem.loss[rows, found.choice].tolist())
    assert sum(Fraction(lost) for lost in problem.loss[rows, found.choice].tolist()) <= exact + allowance
    assert found.cost == problem.cost[0, rows, found.choice].sum()


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back(family: str) -> None:
    """Least loss within a cost, then least cost within that loss: no more is spent, and no more is lost but for rounding."""
    problem = random_problem(family, 3, 200, 6)
    first = core.solve(problem)
    found = least_cost(problem, first.loss)
    assert found.status is Status.OPTIMAL
    assert found.cost <= first.cost[0] <= problem.limit[0]
    assert found.loss <= first.loss + float(tolerance(problem, first.loss)) * (1 + 1e-9)
    assert tolerance(problem, first.loss) <= Fraction(first.loss) / 10**12


def test_other_resources_rules_and_the_floor_stay() -> None:
    rng = np.random.default_rng(0)
    for seed in range(12):
        loss, cost = rng.integers(0, 9, (5, 3)).astype(float), rng.integers(1, 9, (2, 5, 3))
        rule = count(range(5), [seed % 3], at_least=2)
        problem = ChoiceProblem(loss, cost, np.array([20, 22]), np.ones((5, 3), dtype=np.bool_), np.array([15, 12]), (rule,))
        mirrored, _ = mirror(problem, 18.0, resource=1)
        assert (mirrored.resources, mirrored.rules) == (3, problem.rules)
        assert mirrored.floor.tolist() == [15, 0, 12]
        for resource in (0, 1):
            least = least_by_trying(problem, Fraction(18), resource)
            found = least_cost(problem, 18.0, resource=resource)
            assert found.cost == least if least is not None else found.status is Status.INFEASIBLE


def test_a_mirrored_plain_problem_is_plain_and_its_own_limit_plays_no_part() -> None:
    mirrored, invert = mirror(LGRECO, 1.2)  # the limit of LGRECO is 0
    assert mirrored.plain
    assert mirrored.loss.tolist() == SIZES
    answer = invert(hull.solve(mirrored))
    assert (answer.status, answer.solver, answer.cost) == (Status.FEASIBLE, "hull", 270)
    assert answer.lower_bound < 260
    assert answer.gap == 270 - answer.lower_bound


def test_a_bound_within_one_unit_of_cost_proves_the_optimum() -> None:
    """Costs are whole: none lies between the bound, 2/3, and 1."""
    problem = make([[3.0, 0.0], [3.0, 0.0]], [[0, 1], [0, 2]], 0)
    mirrored, invert = mirror(problem, 4.0)
    solution = core.solve(mirrored)
    assert solution.certificate is not None
    assert solution.certificate.lower_bound / solution.certificate.loss_scale == pytest.approx(Fraction(2, 3), rel=1e-14)
    answer = invert(solution)
    assert (answer.cost, answer.lower_bound, answer.gap, answer.proof) == (1, 1, 0, "multipliers")


def test_options_that_lose_too_much_are_no_longer_allowed_unless_a_rule_names_them() -> None:
    loss, cost = np.array([[3.0, 1.0], [3.0, 0.5]]), np.array([[[0, 1], [0, 2]]])
    for rules, limit, allowed in [
        ((), 4.0, [[True, True], [True, True]]),
        ((), 3.5, [[True, True], [False, True]]),
        ((), 3.4, [[False, True], [False, True]]),
        ((count([1], [0], at_most=0),), 3.4, [[False, True], [True, True]]),
        ((count([1], [0], at_least=1),), 3.4, [[False, True], [True, True]]),
    ]:
        problem = ChoiceProblem(loss, cost, np.array([0]), np.ones((2, 2), dtype=np.bool_), rules=rules)
        mirrored, _ = mirror(problem, limit)
        assert mirrored.allowed.tolist() == allowed
        least = least_by_trying(problem, Fraction(limit))
        found = least_cost(problem, limit)
        assert (found.status is Status.INFEASIBLE) == (least is None)
        assert least is None or found.cost == least


def test_no_choice_says_what_can_be_reached() -> None:
    found = least_cost(LGRECO, 0.39)
    assert (found.choice, found.status, found.least_loss) == (None, Status.INFEASIBLE, 0.4)
    assert math.isinf(found.loss)
    assert least_cost(LGRECO, 0.4).cost == 560
    nothing = make([[0.0, 1e-300], [5.0, 0.0]], [[4, 1], [1, 6]], 0)
    assert least_cost(nothing, 0.0).cost == 10
    assert least_cost(make(np.zeros((2, 2)), [[1, 2], [3, 4]], 0), 0.0).cost == 4
    assert least_cost(LGRECO, 1.7e308).cost == 140


@pytest.mark.parametrize("loss_limit", [-1.0, math.inf, math.nan])
def test_a_loss_limit_is_a_number(loss_limit: float) -> None:
    with pytest.raises(ValueError, match="finite number of at least 0"):
        mirror(LGRECO, loss_limit)


def test_refuses_an_unknown_resource_and_costs_that_floats_do_not_hold() -> None:
    with pytest.raises(ValueError, match="one of the 1 resources"):
        mirror(LGRECO, 1.0, resource=1)
    with pytest.raises(ValueError, match="larger unit"):
        mirror(make([[1.0, 2.0]], [[2**53 + 1, 0]], 0), 1.0)
