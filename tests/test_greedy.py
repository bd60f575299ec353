from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitplan.solvers import ChoiceProblem, Status, brute_force, certify, core, count, greedy, scaled
from bitplan.solvers.greedy import cheapest_choice
from problems import FAMILIES, KNOWN, crossed, make, padded, random_problem, worked


def scaled_loss(problem: ChoiceProblem, choice: npt.NDArray[np.int64] | None) -> int:
    assert choice is not None
    return int(scaled(problem).loss[np.arange(problem.items), choice].sum())


@pytest.mark.parametrize("limit", range(8, 17))
def test_the_worked_instance_at_every_budget(limit: int) -> None:
    """Methods dossier 12.8: by hand, A, A, B, B, C, C, skipping what does not fit; here that is optimal each time."""
    by_hand = {8: (0, 0, 0), 9: (1, 0, 0), 10: (2, 0, 0), 11: (2, 0, 1), 12: (2, 1, 0), 13: (2, 1, 1)}
    by_hand |= {14: (2, 2, 0), 15: (2, 2, 1), 16: (2, 2, 2)}
    solution = greedy.solve(worked(limit))
    assert solution.choice is not None
    assert tuple(solution.choice.tolist()) == by_hand[limit]
    assert solution.loss == pytest.approx(core.solve(worked(limit)).loss, rel=1e-15)


@pytest.mark.parametrize("known", [known for known in KNOWN if known.name.startswith("baq")], ids=str)
def test_a_bit_at_a_time_is_optimal_for_baq(known) -> None:  # type: ignore[no-untyped-def]
    assert greedy.solve(known.problem).loss == pytest.approx(known.loss, rel=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    gains=st.lists(st.lists(st.floats(0, 1e3), min_size=3, max_size=3), min_size=1, max_size=6),
    step=st.integers(1, 10**9),
    steps=st.integers(0, 18),
)
def test_exact_where_steps_cost_the_same_and_losses_are_convex(gains: list[list[float]], step: int, steps: int) -> None:
    """Methods dossier 12.5, last paragraph (Fox 1966): equal steps, falling gains."""
    falling = np.sort(np.array(gains), axis=1)[:, ::-1]
    loss = np.hstack([falling[:, ::-1].cumsum(axis=1)[:, ::-1], np.zeros((len(gains), 1))])
    problem = make(loss, np.tile(np.arange(4) * step, (len(gains), 1)), steps * step)
    least = scaled_loss(problem, brute_force(problem).choice)
    # Brute force adds floats; either may be better within their rounding.
    assert scaled_loss(problem, greedy.solve(problem).choice) <= least + len(gains)


def test_a_flat_step_hides_the_steep_one_behind_it() -> None:
    problem = padded([[(0, 10.0), (1, 9.9), (2, 0.0)], [(0, 10.0), (2, 5.0)]], 2)
    solution = greedy.solve(problem)
    assert solution.choice is not None
    assert solution.choice.tolist() == [0, 1]
    assert (solution.status, solution.loss, core.solve(problem).loss) == (Status.FEASIBLE, 15.0, 10.0)


def test_it_stops_at_options_off_the_hull() -> None:
    problem = padded([[(0, 10.0), (1, 8.0), (3, 0.0)]], 2)
    solution = greedy.solve(problem)
    assert solution.choice is not None
    assert solution.choice.tolist() == [1]


def test_options_that_cost_more_and_lose_more_are_passed_over() -> None:
    problem = padded([[(0, 10.0), (1, 11.0), (2, 4.0), (3, 4.0), (4, 3.0)]], 3)
    solution = greedy.solve(problem)
    assert solution.choice is not None
    assert solution.choice.tolist() == [2]


def test_of_equally_cheap_options_the_start_is_the_one_that_loses_least() -> None:
    assert greedy.solve(make([[3.0, 1.0, 2.0]], [[4, 4, 4]], 4)).loss == 1.0


def test_losses_and_costs_beyond_the_digits_of_a_float_are_told_apart() -> None:
    # Both steps cost the same and save 2^57 or one more; only integers see which.
    problem = make([[2.0**57, 0.0], [2.0**57 + 32, 0.0]], [[0, 2**55], [0, 2**55]], 2**55)
    assert greedy.solve(problem).loss == 2.0**57
    dear = make([[1.0, 0.0]], [[2**58 + 1, 2**58]], 2**58)
    assert greedy.solve(dear).loss == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_that_saves_and_fits_is_left(family: str) -> None:
    problem = random_problem(family, 5, 60, 6)
    solution = greedy.solve(problem)
    assert solution.choice is not None
    assert solution.certificate is not None
    tables, rows = scaled(problem), np.arange(60)
    saved = tables.loss[rows, solution.choice][:, None] - tables.loss
    more = tables.cost[0] - tables.cost[0][rows, solution.choice][:, None]
    assert not np.any(tables.allowed & (saved > 0) & (more <= tables.limit[0] - solution.cost[0]))
    assert solution.certificate == certify(problem, solution.choice, solution.certificate.multipliers)
    assert core.solve(problem).certificate is not None
    assert solution.certificate.lower_bound == core.solve(problem).certificate.lower_bound  # type: ignore[union-attr]


def test_an_option_that_breaks_one_of_two_limits_makes_way_for_the_next() -> None:
    # The middle option is nearest by its shares, 3/10 + 0/4, but the second item's start leaves it no room in the first.
    cost = [[[0, 3, 1], [8, 8, 8]], [[0, 0, 4], [0, 0, 0]]]
    problem = make([[9.0, 1.0, 2.0], [0.0, 0.0, 0.0]], cost, 10, 4)
    solution = greedy.solve(problem)
    assert solution.choice is not None
    assert solution.choice.tolist()[0] == 2


def test_several_resources_keep_every_limit_and_their_bound_is_that_of_the_relaxation() -> None:
    problem = crossed(60)
    solution = greedy.solve(problem)
    assert solution.certificate is not None
    assert np.all(solution.cost <= problem.limit)
    assert all(multiplier > 0 for multiplier in solution.certificate.multipliers)
    assert solution.certificate.gap / solution.certificate.loss_scale < 0.5 * solution.loss


def test_where_the_smallest_options_break_a_limit_the_start_is_searched_for() -> None:
    # Each item's first option is the smaller by shares, but only (1, 0) keeps both limits.
    valley = make([[0.0, 1.0], [0.0, 1.0]], [[[4, 0], [4, 5]], [[0, 5], [0, 3]]], 5, 5)
    found = cheapest_choice(scaled(valley), math.inf)
    assert found.choice is not None
    assert found.choice.tolist() == [1, 0]
    assert greedy.solve(valley).loss == 1.0
    crossing = make([[0.0, 0.0], [0.0, 0.0]], [[[6, 0], [0, 6]], [[0, 9], [9, 0]]], 5, 5)
    assert (greedy.solve(crossing).status, greedy.solve(crossing).choice) == (Status.INFEASIBLE, None)


def test_what_it_cannot_keep_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"greedy solves problems with limits and nothing else, not a floor; use `best`"):
        greedy.solve(replace(worked(12), floor=np.array([9])))
    with pytest.raises(ValueError, match=r"not 1 rules; use `best`"):
        greedy.solve(replace(worked(12), rules=(count([0], [1], at_most=0),)))
    solution = greedy.solve(worked(7))
    assert (solution.status, solution.smallest_limit, solution.solver) == (Status.INFEASIBLE, (8,), "greedy")
