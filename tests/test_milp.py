from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bitplan.solvers import Status, brute_force, count, forbid, milp, scaled
from bitplan.solvers.highs import least
from bitplan.solvers.infeasible import explain
from problems import FAMILIES, crossed, make, ruled, worked

# Only (1, 1) keeps both limits, and from (0, 0) each single step there makes things worse.
VALLEY = make([[0.0, 1.0], [0.0, 1.0]], [[[6, 0], [0, 5]], [[0, 5], [6, 0]]], 5, 5)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("family", FAMILIES)
def test_within_a_ten_millionth_of_the_largest_loss(family: str, seed: int) -> None:
    problem = ruled(family, seed, 6, 4)
    solution, truth = milp.solve(problem), brute_force(problem)
    if truth.choice is None:
        assert (solution.status, solution.smallest_limit) == (Status.INFEASIBLE, truth.smallest_limit)
        return
    assert solution.choice is not None
    assert not problem.rows.broken(solution.choice)
    assert solution.loss <= truth.loss + 1e-7 * problem.loss.max()
    assert solution.status in (Status.OPTIMAL, Status.FEASIBLE)
    assert solution.reason == "HiGHS: optimal within its tolerances"


def test_highs_own_word_is_no_proof() -> None:
    assert (milp.solve(worked(12)).status, milp.solve(worked(12)).proof) == (Status.FEASIBLE, "bound")
    assert (milp.solve(worked(14)).status, milp.solve(worked(14)).proof) == (Status.OPTIMAL, "multipliers")


def test_a_choice_that_no_single_step_leads_to() -> None:
    found = least(scaled(VALLEY).loss, scaled(VALLEY), math.inf)
    assert found.done
    assert found.choice is not None
    assert found.choice.tolist() == [1, 1]


def test_a_time_limit_is_kept_and_said() -> None:
    solution = milp.solve(crossed(3000), time_limit=0.5)
    assert solution.status is Status.LIMIT
    assert solution.seconds < 10


def test_limits_that_exclude_each_other() -> None:
    """Each could be kept alone: the answer is that no choice keeps both, and what either would have to be."""
    problem = make([[0.0, 0.0], [0.0, 0.0]], [[[1, 5], [1, 5]], [[5, 1], [5, 1]]], 5, 5)
    solution = milp.solve(problem)
    assert (solution.status, solution.choice, solution.smallest_limit) == (Status.INFEASIBLE, None, (10, 10))
    assert solution.blocking == ("the limit of resource 0", "the limit of resource 1")
    assert math.isinf(solution.loss)


def test_one_limit_that_nothing_keeps() -> None:
    problem = make([[0.0, 0.0], [0.0, 0.0]], [[[3, 5], [3, 5]], [[5, 1], [5, 1]]], 5, 10)
    assert milp.solve(problem).smallest_limit == (6, 2)
    assert milp.solve(problem).blocking == ("the limit of resource 0",)


def test_what_blocks_is_named_and_no_more_than_that() -> None:
    bystander = count([0, 1], [2], at_most=2)
    asks, excludes = count([0, 1], [1], at_least=2), forbid((0, 1), (1, 1))
    problem = replace(worked(100), rules=(bystander, asks, excludes))
    smallest, blocking = explain(scaled(problem), math.inf)
    assert blocking == (f"the rule {asks.name!r}", f"the rule {excludes.name!r}")
    assert smallest == (8,)
    tight = replace(worked(9), rules=(bystander, count([1], [2], at_least=1)))
    smallest, blocking = explain(scaled(tight), math.inf)
    assert smallest == (12,)
    assert blocking == ("the limit of resource 0", f"the rule {tight.rules[1].name!r}")


def test_a_floor_that_cannot_be_reached_is_named() -> None:
    problem = replace(worked(20), floor=np.array([17]))
    assert milp.solve(problem).blocking == ("the floor of resource 0",)


def test_no_choice_within_a_tightened_bound_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """HiGHS first breaks the limit by its tolerance, then finds nothing below the tightened one."""
    import scipy.optimize

    shares = np.eye(3)[[2, 2, 2]].ravel()  # the dearest options, beyond the limit
    answers = iter([SimpleNamespace(x=shares, status=0), SimpleNamespace(x=None, status=2)])
    monkeypatch.setattr(scipy.optimize, "milp", lambda *_, **__: next(answers))
    tables = scaled(worked(12))
    found = least(tables.loss, tables, math.inf)
    assert (found.choice, found.done) == (None, False)
