from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from bitplan.solvers import ChoiceProblem, Status, count, merge_tied
from bitplan.solvers.product import Line, ProductSolution, product_bound, solve_product
from problems import FAMILIES, Floats, make, random_problem, worked

# MxMoE (arXiv 2505.05799): gate and up of expert 0, down of expert 0, the same of expert 1; schemes w4a4 and w8a8.
LOSS = [[3.0, 0.4], [5.0, 0.3], [2.0, 0.2], [4.0, 0.2]]
TIME = np.array([[1, 2], [0.5, 1], [6, 12], [3, 6]])
BITS = [[8, 16], [4, 8], [8, 16], [4, 8]]


def choices(problem: ChoiceProblem) -> list[np.ndarray]:
    """Every choice within the rows."""
    options = [np.flatnonzero(row).tolist() for row in problem.allowed]
    return [choice for choice in map(np.array, itertools.product(*options)) if not problem.rows.broken(choice)]


def hold(problem: ChoiceProblem, time: Floats, weight: float, solution: ProductSolution) -> None:
    """Everything that a solution promises, against every choice."""
    rows = np.arange(problem.items)
    assert solution.choice is not None
    assert not problem.rows.broken(solution.choice)
    assert solution.loss == math.fsum(problem.loss[rows, solution.choice].tolist())
    assert solution.time == math.fsum(time[rows, solution.choice].tolist())
    assert solution.product == solution.loss**weight * solution.time ** (1 - weight)
    assert solution.lower_bound <= solution.product
    assert solution.lower_bound == min(product_bound(solution.lines, weight), solution.product)
    tried = choices(problem)
    loss, spent = (np.array([table[rows, choice].sum() for choice in tried]) for table in (problem.loss, time))
    least = float((loss**weight * spent ** (1 - weight)).min())
    assert solution.product == pytest.approx(least, rel=1e-12, abs=1e-300)
    for line in solution.lines:  # exactly, where it is closest
        lowest = tried[int((line.loss_weight * loss + line.time_weight * spent).argmin())]
        exact_loss, exact_time = (sum(map(Fraction, table[rows, lowest].tolist())) for table in (problem.loss, time))
        assert Fraction(line.loss_weight) * exact_loss + Fraction(line.time_weight) * exact_time >= Fraction(line.bound)
    assert solution.lower_bound == pytest.approx(least, rel=1.0000001e-9, abs=1e-300)
    assert solution.status is Status.OPTIMAL


@pytest.mark.parametrize(
    ("limit", "weight", "choice", "loss", "time", "product"),
    [
        (36, 1.0, [0, 1, 0, 1], 5.5, 14, 5.5),
        (36, 0.75, [0, 1, 0, 1], 5.5, 14, 6.947108),
        (36, 0.5, [0, 1, 0, 1], 5.5, 14, 8.774964),
        (40, 1.0, [1, 1, 0, 1], 2.9, 15, 2.9),
        (40, 0.75, [1, 1, 0, 1], 2.9, 15, 4.373421),
        (40, 0.5, [1, 1, 0, 1], 2.9, 15, 6.595453),
        (36, 0.0, [0, 0, 0, 0], 14, 10.5, 10.5),
        (40, 0.0, [0, 0, 0, 0], 14, 10.5, 10.5),
    ],
)
def test_the_worked_example_of_mxmoe(
    limit: int, weight: float, choice: list[int], loss: float, time: float, product: float
) -> None:
    problem = make(LOSS, BITS, limit)
    solution = solve_product(problem, TIME, weight)
    assert solution.choice is not None
    assert solution.choice.tolist() == choice
    assert solution.loss == pytest.approx(loss)
    assert solution.time == time
    assert solution.product == pytest.approx(product, abs=5e-7)
    assert solution.cost.tolist() == [np.array(BITS)[np.arange(4), choice].sum()]
    hold(problem, TIME, weight, solution)


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.75, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_against_every_choice(family: str, weight: float) -> None:
    for seed in range(3):
        problem = random_problem(family, seed, 5, 4)
        time = np.random.default_rng(seed).random(problem.loss.shape) * 10.0 ** (3 * seed)
        hold(problem, time, weight, solve_product(problem, time, weight))


@pytest.mark.parametrize("seed", range(6))
def test_several_limits_and_rules(seed: int) -> None:
    rng = np.random.default_rng(seed)
    loss, cost, time = rng.random((5, 3)), rng.integers(0, 20, (2, 5, 3)), rng.integers(0, 50, (5, 3))
    problem = replace(make(loss, cost, 60, 60), rules=(count(range(5), (0,), at_most=2),))
    hold(problem, time.astype(np.float64), 0.6, solve_product(problem, time, 0.6))


@pytest.mark.parametrize("seed", range(4))
def test_corners_inside_the_front_are_found(seed: int) -> None:
    """Where loss and time pull against each other, the best is at neither end."""
    rng = np.random.default_rng(seed)
    speed = np.clip(np.linspace(0, 1, 5) + rng.uniform(-0.1, 0.1, (5, 5)), 0, 1)
    problem = make(0.2 + (1 - speed) ** 6, np.zeros((5, 5), dtype=int), 0)
    time = 0.2 + speed**6
    solution = solve_product(problem, time, 0.5)
    ends = [solve_product(problem, time, weight) for weight in (0.0, 1.0)]
    assert all(solution.product < 0.999 * (end.loss * end.time) ** 0.5 for end in ends)
    hold(problem, time, 0.5, solution)


def test_ties_go_to_the_other_objective() -> None:
    problem = make([[1.0, 1.0, 2.0], [3.0, 3.0, 3.0]], np.zeros((2, 3), dtype=int), 0)
    time = np.array([[5, 4, 1], [2, 9, 1]])
    best = solve_product(problem, time, 1.0)
    assert (best.loss, best.time) == (4.0, 5.0)
    fast = solve_product(problem, [[1, 1, 1], [2, 2, 2]], 0.0)
    assert (fast.time, fast.loss) == (3.0, 4.0)
    near = make([[1.0, 1.0 + 2.0**-52]], [[0, 0]], 0)  # no tie: the loss comes first
    assert solve_product(near, [[9, 1]], 1.0).loss == 1.0


def test_a_sum_that_can_be_nothing_makes_the_product_nothing() -> None:
    problem = make([[3.0, 1.0], [2.0, 1.0]], [[0, 1], [0, 1]], 2)
    solution = solve_product(problem, [[0, 4], [0, 4]], 0.5)
    assert (solution.product, solution.lower_bound, solution.status) == (0.0, 0.0, Status.OPTIMAL)


def test_tied_gate_and_up_get_one_scheme() -> None:
    """Times are tied as losses are: by merging them as if they were losses."""
    loss = [[1.0, 0.1], [2.0, 0.3], [5.0, 0.3], [2.0, 0.2], [4.0, 0.2]]
    problem = make(loss, [[4, 8]] * 5, 30)
    time = np.array([[0.4, 0.8], [0.6, 1.2], [0.5, 1], [6, 12], [3, 6]])
    merged, invert = merge_tied(problem, [[0, 1]])
    merged_time = merge_tied(replace(problem, loss=time), [[0, 1]])[0].loss
    solution = solve_product(merged, merged_time, 0.5)
    assert solution.choice is not None
    tied = [choice for choice in choices(problem) if choice[0] == choice[1]]
    rows = np.arange(5)
    assert invert(solution.choice)[0] == invert(solution.choice)[1]
    least = min((problem.loss[rows, choice].sum() * time[rows, choice].sum()) ** 0.5 for choice in tied)
    assert solution.product == pytest.approx(least)


def test_the_bound_of_lines_is_that_of_their_corners() -> None:
    lines = [Line(1.0, 0.0, 2.0, "multipliers"), Line(0.0, 1.0, 3.0, "multipliers")]
    assert product_bound(lines, 0.5) == pytest.approx(6**0.5, rel=1e-14)
    assert product_bound(lines, 0.5) <= 6**0.5
    # L + T >= 10 leaves the corners (2, 8) and (7, 3).
    assert product_bound([*lines, Line(1.0, 1.0, 10.0, "search")], 0.5) == pytest.approx(4.0, rel=1e-14)
    assert product_bound([*lines, Line(1.0, 1.0, 10.0, "search")], 0.0) == pytest.approx(3.0, rel=1e-14)
    assert product_bound([*lines, Line(1.0, 1.0, 4.0, "search")], 0.5) == pytest.approx(6**0.5, rel=1e-14)
    assert product_bound(lines[:1], 0.5) == 0.0


def test_losses_and_times_of_any_size() -> None:
    problem = random_problem("layers", 3, 6, 4)
    time = np.random.default_rng(3).random(problem.loss.shape)
    straight = solve_product(problem, time, 0.5)
    for loss_unit, time_unit in ((2.0**-80, 2.0**40), (2.0**40, 2.0**-80)):
        scaled = solve_product(replace(problem, loss=problem.loss * loss_unit), time * time_unit, 0.5)
        assert scaled.choice is not None
        assert straight.choice is not None
        assert scaled.choice.tolist() == straight.choice.tolist()


def test_an_option_that_loses_too_much_does_not_matter() -> None:
    """The weights come from differences of 1e-9, and the table holds 1e12, more than 60 bits away."""
    problem = make([[2.0e-9, 1.0e-9, 1e12], [3.0e-9, 1.5e-9, 1e12]], np.zeros((2, 3), dtype=int), 0)
    time = np.array([[1, 3, 9], [1, 2, 9]])
    solution = solve_product(problem, time, 0.5)
    hold(problem, time, 0.5, solution)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_no_choice_and_no_time(weight: float) -> None:
    nothing = solve_product(worked(7), np.ones((3, 3)), weight)
    assert (nothing.choice, nothing.status, nothing.solution.smallest_limit) == (None, Status.INFEASIBLE, (8,))
    problem = random_problem("layers", 12, 60, 7)
    hurried = solve_product(problem, np.random.default_rng(0).random((60, 7)), weight, time_limit=0.0)
    assert hurried.choice is not None
    if weight:  # the limit stands in the way of the least loss, and not of the least time
        assert hurried.status is Status.LIMIT
        assert hurried.lower_bound < hurried.product
    assert hurried.cost[0] <= problem.limit[0]


def test_what_it_refuses() -> None:
    problem = worked(12)
    for weight in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"must lie in 0 \.\. 1"):
            solve_product(problem, np.ones((3, 3)), weight)
    with pytest.raises(ValueError, match=r"time must have the shape \(3, 3\)"):
        solve_product(problem, np.ones((3, 2)), 0.5)
    for bad in (-1.0, math.inf, math.nan):
        time = np.ones((3, 3))
        time[1, 2] = bad
        with pytest.raises(ValueError, match="the time of item 1, option 2"):
            solve_product(problem, time, 0.5)
    pinned = make([[1.0, 2.0]], [[1, 1]], 1, allowed=[[True, False]])
    assert solve_product(pinned, [[2.0, math.nan]], 0.5).time == 2.0
