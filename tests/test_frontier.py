from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest

from bitplan.solvers import ChoiceProblem, brute_force, count, frontier, recompute
from bitplan.solvers.arrays import Bools, Ints
from bitplan.solvers.frontier import CHUNK, hull_steps
from problems import FAMILIES, WORKED_VERTICES, make, random_problem, worked


def at_limit(problem: ChoiceProblem, limit: int) -> ChoiceProblem:
    return ChoiceProblem(problem.loss, problem.cost, np.array([limit]), problem.allowed)


def test_the_worked_frontier() -> None:
    curve = frontier(worked(0))
    assert np.column_stack([curve.budgets, curve.losses]) == pytest.approx(np.array(WORKED_VERTICES))
    assert curve.multipliers.tolist() == pytest.approx([5, 3, 1.125, 0.9, 0])
    assert [curve.choice(vertex).tolist() for vertex in (0, 2, 3, -1)] == [[0, 0, 0], [2, 0, 0], [2, 2, 0], [2, 2, 2]]


@pytest.mark.parametrize(("limit", "vertex"), [(8, 0), (9, 1), (10, 2), (13, 2), (14, 3), (16, 4), (10**15, 4)])
def test_lookup_gives_the_last_vertex_within_the_limit(limit: int, vertex: int) -> None:
    assert frontier(worked(0)).lookup(limit) == vertex


def test_lookup_below_everything_says_the_least_cost() -> None:
    with pytest.raises(ValueError, match="a limit of 7 is below the least total cost, 8"):
        frontier(worked(0)).lookup(7)


def test_vertices_out_of_range_do_not_exist() -> None:
    with pytest.raises(IndexError):
        frontier(worked(0)).choice(5)


def test_one_resource_only() -> None:
    with pytest.raises(ValueError, match="over one resource, and this problem has 2"):
        frontier(make([[1.0]], [[[1]], [[1]]], 1, 1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_vertex_is_the_optimum_of_its_budget(family: str, seed: int) -> None:
    problem = random_problem(family, seed, 5, 4)
    curve = frontier(problem)
    spread = float(np.abs(problem.loss).max())
    for vertex, (budget, loss) in enumerate(zip(curve.budgets.tolist(), curve.losses.tolist(), strict=True)):
        total, cost = recompute(problem, curve.choice(vertex))
        assert cost.tolist() == [budget]
        assert loss == pytest.approx(total, rel=1e-12, abs=1e-15 * spread)
        assert loss == pytest.approx(brute_force(at_limit(problem, budget)).loss, rel=1e-12, abs=1e-15 * spread)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_frontier_falls_ever_more_slowly(family: str) -> None:
    problem = random_problem(family, 7, 40, 6)
    curve = frontier(problem)
    costs = [recompute(problem, curve.choice(vertex))[1].tolist() for vertex in range(len(curve.budgets))]
    assert costs == [[budget] for budget in curve.budgets.tolist()]
    assert np.all(np.diff(curve.budgets) > 0)
    assert np.all(np.diff(curve.losses) < 0)
    assert np.all(np.diff(curve.multipliers) <= 0)
    slopes = -np.diff(curve.losses) / np.diff(curve.budgets)
    assert slopes == pytest.approx(curve.multipliers[:-1], rel=1e-6)
    assert curve.multipliers[-1] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_lines_between_vertices_bound_every_budget(family: str) -> None:
    problem = random_problem(family, 11, 4, 4)
    curve = frontier(problem)
    spread = float(np.abs(problem.loss).max())
    for budget in np.linspace(curve.budgets[0], curve.budgets[-1], 9).astype(int).tolist():
        line = float(np.interp(budget, curve.budgets, curve.losses))
        best = brute_force(at_limit(problem, budget)).loss
        assert line <= best * (1 + 1e-12) + 1e-15 * spread
        assert best <= curve.losses[curve.lookup(budget)] * (1 + 1e-12) + 1e-15 * spread


def test_the_ends_are_the_cheapest_and_the_best_choice() -> None:
    # Equal costs: the one that loses less is the cheapest choice. Equal losses: the cheaper one is the best.
    curve = frontier(make([[7.0, 5.0, 1.0, 1.0]], [[2, 2, 4, 9]], 0))
    assert curve.budgets.tolist() == [2, 4]
    assert (curve.choice(0).tolist(), curve.choice(1).tolist()) == ([1], [2])


def test_points_on_an_edge_count() -> None:
    curve = frontier(make([[4.0, 3.0, 2.0, 0.0]], [[0, 1, 2, 4]], 0))
    assert curve.budgets.tolist() == [0, 1, 2, 4]
    assert curve.multipliers.tolist() == [1, 1, 1, 0]


def test_rounding_does_not_put_an_items_steps_out_of_order() -> None:
    """The second step is the flatter one, and the steeper one in float64."""
    first, second = 51321692128937652, 153965076386812954
    assert first * 3 > second
    assert float(second) / (3 * 410097) > float(first) / 410097
    steps = hull_steps(
        np.array([[first + second, second, 0]]), np.array([[0, 410097, 4 * 410097]]), np.ones((1, 3), dtype=np.bool_)
    )
    assert steps.option.tolist() == [1, 2]
    assert steps.slope[0] >= steps.slope[1]
    assert [steps.choice_after(taken).tolist() for taken in range(3)] == [[0], [1], [2]]


def test_floors_and_rules_are_refused() -> None:
    floor = ChoiceProblem(worked(9).loss, worked(9).cost, np.array([9]), worked(9).allowed, np.array([1]))
    for problem in (floor, replace(worked(9), rules=(count((0, 1), (0,), at_most=1),))):
        with pytest.raises(ValueError, match="leave out floor and rules"):
            frontier(problem)


def test_the_steps_beside_a_vertex() -> None:
    curve = frontier(worked(0))
    steps = [curve.step_up(0), curve.step_up(1), curve.step_up(2), curve.step_down(3), curve.step_down(-1)]
    assert [step and astuple(step) for step in steps] == [
        (0, 0, 1, 1, pytest.approx(5), pytest.approx(5)),
        (0, 1, 2, 1, pytest.approx(3), pytest.approx(3)),
        (1, 0, 2, 4, pytest.approx(4.5), pytest.approx(1.125)),
        (1, 2, 0, -4, pytest.approx(-4.5), pytest.approx(1.125)),
        (2, 2, 0, -2, pytest.approx(-1.8), pytest.approx(0.9)),
    ]
    assert (curve.step_up(-1), curve.step_down(0)) == (None, None)
    for step in (curve.step_up, curve.step_down):
        with pytest.raises(IndexError):
            step(5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_leads_from_one_vertex_to_the_next(family: str) -> None:
    problem = random_problem(family, 2, 12, 6)
    curve = frontier(problem)
    for vertex in range(len(curve.budgets) - 1):
        up, down = curve.step_up(vertex), curve.step_down(vertex + 1)
        assert up is not None
        assert down is not None
        before, after = curve.choice(vertex), curve.choice(vertex + 1)
        assert np.flatnonzero(before != after).tolist() == [up.item]
        assert (before[up.item], after[up.item]) == (up.from_option, up.to_option) == (down.to_option, down.from_option)
        assert up.cost == -down.cost == curve.budgets[vertex + 1] - curve.budgets[vertex]
        saved = problem.loss[up.item, up.from_option] - problem.loss[up.item, up.to_option]
        assert up.saved == -down.saved == pytest.approx(saved, rel=1e-12, abs=1e-15 * float(problem.loss.max()))
        assert up.slope == down.slope == pytest.approx(up.saved / up.cost, rel=1e-9)


def test_the_shadow_price_is_the_slope_at_the_limit() -> None:
    curve = frontier(worked(0))
    assert [curve.shadow_price(limit) for limit in (8, 9, 13, 15, 16)] == pytest.approx([5, 3, 1.125, 0.9, 0])
    assert curve.shadow_price(10, per=4) == pytest.approx(4.5)
    with pytest.raises(ValueError, match="a limit of 7 is below the least total cost, 8"):
        curve.shadow_price(7)


def steps_one_by_one(loss: Ints, cost: Ints, allowed: Bools) -> list[tuple[float, int, int]]:
    """(slope, item, option) of every step, by falling slope, found item by item."""
    found = []
    for item, (lost, spent, open_) in enumerate(zip(loss.tolist(), cost.tolist(), allowed.tolist(), strict=True)):
        options = [j for j, ok in enumerate(open_) if ok]
        at, bar = min(options, key=lambda j: (spent[j], lost[j])), np.inf
        number = 0
        while ahead := [j for j in options if spent[j] > spent[at] and lost[j] < lost[at]]:
            slope = {j: (lost[at] - lost[j]) / (spent[j] - spent[at]) for j in ahead}
            to = min(ahead, key=lambda j: (-slope[j], spent[j]))
            bar, at = min(bar, slope[to]), to
            found.append((-bar, number, item, to))
            number += 1
    return [(-slope, item, to) for slope, _, item, to in sorted(found)]


@pytest.mark.parametrize("family", ["whole", "wild", "twins"])
def test_chunks_of_items_make_one_order(family: str) -> None:
    """More items than a chunk holds, with columns in any order of cost; of equal slopes, the earlier round comes first."""
    options = CHUNK // 512
    problem = random_problem(family, 3, 700, 5)
    loss, cost = np.zeros((2, 700, options), dtype=np.int64)
    allowed = np.zeros((700, options), dtype=np.bool_)
    loss[:, 3:8], cost[:, 3:8], allowed[:, 3:8] = (problem.loss * 2**20).astype(np.int64), problem.cost[0], problem.allowed
    steps = hull_steps(loss, cost, allowed)
    found = list(zip(steps.slope.tolist(), steps.item.tolist(), steps.option.tolist(), strict=True))
    assert found == steps_one_by_one(loss, cost, allowed)


def test_a_problem_without_any_step() -> None:
    curve = frontier(make([[3.0, 4.0]], [[5, 6]], 9))
    assert (curve.budgets.tolist(), curve.losses.tolist(), curve.multipliers.tolist()) == ([5], [3.0], [0.0])
    assert (curve.step_up(0), curve.step_down(0), curve.shadow_price(5)) == (None, None, 0.0)
