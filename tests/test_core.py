from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitplan.solvers import ChoiceProblem, Status, best, brute_force, core, count, hull, scaled
from problems import FAMILIES, make, random_problem, worked


def least_by_table(problem: ChoiceProblem) -> int:
    """The textbook's dynamic programme: the least scaled loss for every cost from 0 to the limit, item after item."""
    tables = scaled(problem)
    limit, nothing = int(tables.limit[0]), np.iinfo(np.int64).max // 2
    least = np.zeros(limit + 1, dtype=np.int64)
    for loss, cost, mask in zip(tables.loss, tables.cost[0], tables.allowed, strict=True):
        following = np.full(limit + 1, nothing)
        for option in np.flatnonzero(mask):
            spent = int(cost[option])
            if spent <= limit:
                following[spent:] = np.minimum(following[spent:], least[: limit + 1 - spent] + loss[option])
        least = np.minimum(following, nothing)
    return int(least[limit])


def scaled_loss(problem: ChoiceProblem, choice: np.ndarray | None) -> int:
    assert choice is not None
    return int(scaled(problem).loss[np.arange(problem.items), choice].sum())


def coarse(family: str, seed: int, items: int, options: int) -> ChoiceProblem:
    """A problem of the family with costs small enough for a table."""
    problem = random_problem(family, seed, items, options)
    divisor = max(1, int(problem.cost.max()) // 100)
    cost = problem.cost // divisor
    least = np.where(problem.allowed, cost[0], cost.max()).min(axis=1).sum()
    return make(problem.loss, cost, int(least + problem.limit[0] // divisor) // 2 + 1, allowed=problem.allowed)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_the_textbook_table(family: str, seed: int) -> None:
    problem = coarse(family, seed, 60, 6)
    if problem.limit[0] < np.where(problem.allowed, problem.cost[0], problem.cost.max()).min(axis=1).sum():
        assert core.solve(problem).status is Status.INFEASIBLE
        return
    solution = core.solve(problem)
    assert solution.status is Status.OPTIMAL
    assert scaled_loss(problem, solution.choice) == least_by_table(problem)


small = st.integers(0, 12)


@given(
    table=st.lists(st.lists(st.tuples(small, small), min_size=1, max_size=4), min_size=1, max_size=6),
    share=st.floats(0, 1),
)
def test_agrees_with_every_choice_tried(table: list[list[tuple[int, int]]], share: float) -> None:
    width = max(len(row) for row in table)
    filled = [row + [row[0]] * (width - len(row)) for row in table]
    loss = [[float(lost) for _, lost in row] for row in filled]
    cost = [[spent for spent, _ in row] for row in filled]
    least, most = sum(min(row) for row in cost), sum(max(row) for row in cost)
    problem = make(loss, cost, round(least + share * (most - least)))
    solution = core.solve(problem)
    assert solution.status is Status.OPTIMAL
    assert solution.loss == brute_force(problem).loss


def test_bounds_drop_nothing_that_is_better() -> None:
    for seed in range(200):
        problem = random_problem("near", seed, 6, 5, holes=False)
        assert core.solve(problem).loss == brute_force(problem).loss


@pytest.mark.parametrize("family", FAMILIES)
def test_large_problems_are_proven(family: str) -> None:
    problem = random_problem(family, 1, 400, 7)
    solution = core.solve(problem)
    assert solution.status is Status.OPTIMAL
    assert solution.certificate is not None
    assert solution.loss <= hull.solve(problem).loss
    if family == "layers":
        assert solution.certificate.gap / solution.certificate.loss_scale < 1e-4 * solution.loss


def test_proof_by_multipliers_where_they_suffice_and_by_search_elsewhere() -> None:
    assert [core.solve(worked(limit)).proof for limit in (10, 12, 13, 14)] == ["multipliers", "search", "search", "multipliers"]


def test_costs_with_a_common_divisor() -> None:
    """Only multiples of 2^30 can be reached: what is left of the limit beyond one buys nothing, and is not searched for."""
    problem = random_problem("whole", 3, 8, 4)
    stretched = make(problem.loss, problem.cost * 2**30, int(problem.limit[0]) * 2**30 + 12345, allowed=problem.allowed)
    assert core.solve(stretched).loss == brute_force(problem).loss


def test_a_divisor_that_only_a_useless_option_breaks() -> None:
    """Costs of 65 a step, and one option so dear that no better choice holds it: slack below a step is not searched for."""
    rng = np.random.default_rng(7)
    steps = np.tile(np.arange(2, 7), (50, 1))
    loss = np.hstack([rng.lognormal(0, 1, (50, 1)) * 4.0**-steps, np.zeros((50, 1))])
    cost = np.hstack([65 * steps, np.full((50, 1), 1041)])
    for limit in range(65 * 150, 65 * 151, 9):
        problem = make(loss, cost, limit)
        solution = core.solve(problem)
        assert solution.status is Status.OPTIMAL
        assert scaled_loss(problem, solution.choice) == least_by_table(problem)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_warm_changes_no_answer(family: str) -> None:
    """Every limit on the same tables: choice, certificate and proof as from the cold."""
    problem = random_problem(family, 5, 40, 5)
    warm = core.Warm.up(problem)
    least = int(np.where(problem.allowed, problem.cost[0], problem.cost.max()).min(axis=1).sum())
    most = int(np.where(problem.allowed, problem.cost[0], 0).max(axis=1).sum())
    for limit in np.linspace(least - 1, most, 9).astype(int).tolist():
        other = problem.within(np.array([limit]))
        cold = core.solve(make(problem.loss, problem.cost[0], limit, allowed=problem.allowed))
        for solution in (core.solve(other, warm=warm), best.solve(other, warm=warm)):
            assert (solution.status, solution.proof, solution.loss) == (cold.status, cold.proof, cold.loss)
            assert solution.certificate == cold.certificate
            assert (solution.choice is None) == (cold.choice is None) == (limit < least)
            if cold.choice is not None and solution.choice is not None:
                assert solution.choice.tolist() == cold.choice.tolist()


@pytest.mark.parametrize("widths", [(1, 1), (4, 9), (30, 2**21)])
def test_a_narrow_search_never_claims_too_much(monkeypatch: pytest.MonkeyPatch, widths: tuple[int, int]) -> None:
    monkeypatch.setattr(core, "WIDTHS", widths)
    statuses = set()
    for seed in range(40):
        problem = random_problem("linear" if seed % 2 else "layers", seed, 6, 4)
        solution, best = core.solve(problem), brute_force(problem)
        statuses.add(solution.status)
        assert best.loss <= solution.loss * (1 + 1e-12)
        if solution.status is Status.OPTIMAL:
            assert solution.loss == pytest.approx(best.loss, rel=1e-12)
        else:
            assert (solution.status, solution.proof) == (Status.LIMIT, "bound")
    assert (Status.LIMIT in statuses) == (widths[1] < 2**21)


# Losses that fall in proportion to the cost, all but rounding: bounds say nothing and sums are all different.
HARD = make(
    np.random.default_rng(0).random((60, 1)) + 1e-7 * (10**7 - np.random.default_rng(1).integers(1, 10**7, (60, 8))),
    np.random.default_rng(1).integers(1, 10**7, (60, 8)),
    15 * 10**7,
)


def test_room_for_states_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "STATES_LIMIT", 1000)
    solution = core.solve(HARD)
    assert (solution.status, solution.proof) == (Status.LIMIT, "bound")
    assert solution.loss <= hull.solve(HARD).loss
    assert solution.certificate is not None
    assert solution.certificate.gap / solution.certificate.loss_scale < 1e-4 * solution.loss


@pytest.mark.parametrize("time_limit", [0.0, 0.05])
def test_a_time_limit_is_kept_and_said(time_limit: float) -> None:
    started = time.perf_counter()
    solution = core.solve(HARD, time_limit=time_limit)
    assert time.perf_counter() - started < 20  # the search would go on for minutes
    assert (solution.status, solution.proof) == (Status.LIMIT, "bound")
    assert solution.cost[0] <= HARD.limit[0]
    assert solution.loss <= hull.solve(HARD).loss


def test_what_it_does_not_solve_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="core solves problems with one limit and nothing else, not 2 resources; use `best`"):
        core.solve(make([[1.0]], [[[1]], [[1]]], 1, 1))
    with pytest.raises(ValueError, match="not 1 rules; use `best`"):
        core.solve(replace(worked(12), rules=(count([0], [0], at_most=1),)))
    with pytest.raises(ValueError, match="not a floor; use `best`"):
        core.solve(replace(worked(12), floor=np.array([3])))


def test_it_needs_neither_highs_nor_pulp() -> None:
    """Proofs of one limit are numpy's alone: nothing else of the field's solvers has to be installed."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('scipy', 'pulp', 'cvxpy', 'highspy')))\n"
        "import numpy as np; from bitplan.solvers import SOLVERS, ChoiceProblem\n"
        "cost = np.tile(np.arange(2, 9), (500, 1)); loss = np.random.default_rng(0).random((500, 1)) * 4.0**-cost\n"
        "problem = ChoiceProblem(loss, cost[None], np.array([2203]), np.ones(loss.shape, dtype=bool))\n"
        "assert {SOLVERS[name](problem).status.name for name in ('core', 'best')} == {'OPTIMAL'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_too_small_a_limit_is_an_answer() -> None:
    solution = core.solve(worked(7))
    assert (solution.status, solution.smallest_limit, solution.choice) == (Status.INFEASIBLE, (8,), None)
