from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from bitplan.solvers import SOLVERS, ChoiceProblem, brute_force, count, frontier, recompute
from bitplan.solvers.pareto import pareto
from problems import FAMILIES, hawq, make, random_problem, worked


def test_the_worked_front() -> None:
    """The textbook instance: every budget from 8 to 16 is a point, on the hull or off it."""
    front = pareto(worked(0))
    assert front.budgets.tolist() == list(range(8, 17))
    assert front.losses == pytest.approx([16, 11, 8, 7.5, 6.2, 5.7, 3.5, 3.0, 1.7])
    assert [front.choice(front.lookup(limit)).tolist() for limit in (8, 11, 13, 15)] == [
        [0, 0, 0],
        [2, 0, 1],
        [2, 1, 1],
        [2, 2, 1],
    ]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_point_is_undominated_and_every_choice_is_matched(family: str, seed: int) -> None:
    problem = random_problem(family, seed, 5, 4)
    front = pareto(problem)
    assert np.all(np.diff(front.budgets) > 0)
    assert np.all(np.diff(front.losses) < 0)
    spread = float(problem.loss.max()) * 1e-15
    for point, (budget, loss) in enumerate(zip(front.budgets.tolist(), front.losses.tolist(), strict=True)):
        total, cost = recompute(problem, front.choice(point))
        assert cost.tolist() == [budget]
        assert loss == pytest.approx(total, rel=1e-12, abs=spread)
    options = [np.flatnonzero(row).tolist() for row in problem.allowed]
    for choice in itertools.product(*options):
        total, cost = recompute(problem, np.array(choice))
        assert front.losses[front.lookup(int(cost[0]))] <= total * (1 + 1e-12) + spread


@pytest.mark.parametrize("seed", range(3))
def test_every_budget_has_its_optimum(seed: int) -> None:
    problem = random_problem("near", seed, 6, 5)
    front = pareto(problem)
    for limit in range(int(front.budgets[0]), int(front.budgets[-1]) + 3, 7):
        assert front.losses[front.lookup(limit)] == brute_force(replace(problem, limit=np.array([limit]))).loss


def test_the_hull_of_the_front_is_the_frontier() -> None:
    problem = random_problem("whole", 5, 12, 5)
    front, hull = pareto(problem), frontier(problem)
    on_front = [front.losses[front.lookup(budget)] for budget in hull.budgets.tolist()]
    assert on_front == hull.losses.tolist()
    assert set(hull.budgets.tolist()) <= set(front.budgets.tolist())
    assert np.all(np.interp(front.budgets, hull.budgets, hull.losses) <= front.losses + 1e-12)


def test_a_published_model_at_every_budget() -> None:
    """HAWQ-V3's 19 layers of ResNet-18: sizes have a large common divisor, so the whole front is short."""
    problem = hawq("size", quarter=2)
    front = pareto(problem)
    for limit in (int(problem.limit[0]), int(problem.limit[0]) // 2 * 2 - 10**6, int(front.budgets[-1])):
        solution = SOLVERS["best"](replace(problem, limit=np.array([limit])))
        assert front.losses[front.lookup(limit)] == pytest.approx(solution.loss, rel=1e-14)


def test_lookup_below_everything_says_the_least_cost() -> None:
    with pytest.raises(ValueError, match="a limit of 7 is below the least total cost, 8"):
        pareto(worked(0)).lookup(7)
    with pytest.raises(IndexError):
        pareto(worked(0)).choice(9)
    assert pareto(worked(0)).choice(-1).tolist() == [2, 2, 2]


def test_a_front_too_long_is_refused_with_a_way_out() -> None:
    problem = random_problem("layers", 0, 40, 6)
    with pytest.raises(ValueError, match=r"more than 5000 points to keep after \d+ of 40 items; use `frontier`"):
        pareto(problem, most_points=5000)
    small = worked(0)
    points = sum(len(layer.origin) for layer in pareto(small).layers)
    assert len(pareto(small, most_points=points).budgets) == 9
    with pytest.raises(ValueError, match=f"more than {points - 1} points"):
        pareto(small, most_points=points - 1)


def test_one_limit_and_nothing_else() -> None:
    tables = make([[1.0]], [[[1]], [[1]]], 1, 1)
    floor = ChoiceProblem(tables.loss, tables.cost[:1], np.array([1]), tables.allowed, np.array([1]))
    for problem in (tables, floor, replace(worked(0), limit=np.array([9]), rules=(count((0,), (0,), at_most=1),))):
        with pytest.raises(ValueError, match="leave out floor and rules"):
            pareto(problem)
