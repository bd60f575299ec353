from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitplan.solvers import ChoiceProblem, Status, brute_force, core, dp, merge_tied, scaled
from problems import FAMILIES, HAWQ_RESOURCES, HAWQ_TIES, crossed, hawq, random_problem, ruled


def scaled_loss(problem: ChoiceProblem, choice: npt.NDArray[np.int64] | None) -> int:
    assert choice is not None
    return int(scaled(problem).loss[np.arange(problem.items), choice].sum())


@settings(deadline=None)
@given(family=st.sampled_from(list(FAMILIES)), seed=st.integers(0, 2**31), items=st.integers(1, 6), options=st.integers(1, 4))
def test_agrees_with_every_choice_tried(family: str, seed: int, items: int, options: int) -> None:
    problem = ruled(family, seed, items, options)
    solution, truth = dp.solve(problem), brute_force(problem)
    if truth.choice is None:
        assert (solution.status, solution.choice) == (Status.INFEASIBLE, None)
        assert solution.smallest_limit == truth.smallest_limit
        assert solution.blocking
        return
    assert solution.status is Status.OPTIMAL
    assert solution.choice is not None
    assert solution.certificate is not None
    assert not problem.rows.broken(solution.choice)
    assert solution.certificate.lower_bound <= scaled_loss(problem, solution.choice) <= scaled_loss(problem, truth.choice)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "linear"])
def test_agrees_with_the_core_where_both_apply(family: str) -> None:
    problem = random_problem(family, 5, 80, 6)
    solution = dp.solve(problem)
    assert solution.status is Status.OPTIMAL
    assert scaled_loss(problem, solution.choice) == scaled_loss(problem, core.solve(problem).choice)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_all_three_limits_of_a_published_problem(quarter: int) -> None:
    """HAWQ-V3's size, operations and latency at once; each alone is published."""
    problem, _ = merge_tied(hawq(*HAWQ_RESOURCES, quarter=quarter), HAWQ_TIES)
    solution = dp.solve(problem)
    assert solution.status is Status.OPTIMAL
    assert solution.loss == brute_force(problem).loss
    assert solution.certificate is not None
    assert len(solution.certificate.multipliers) == 3


def test_room_for_states_ends_the_search() -> None:
    solution = dp.solve(crossed(60), states=100)
    assert (solution.status, solution.proof) == (Status.LIMIT, "bound")
    assert solution.choice is not None


def test_a_time_limit_is_kept_and_said() -> None:
    solution = dp.solve(crossed(200), time_limit=0.2)
    assert (solution.status, solution.proof) == (Status.LIMIT, "bound")
    assert solution.seconds < 5
