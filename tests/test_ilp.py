from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pulp
import pytest

from bitplan.solvers import ChoiceProblem, Status, brute_force, core, count, forbid, ilp, merge_tied, scaled
from bitplan.solvers.ilp import Backend, objective_of
from bitplan.solvers.reduced import ReducedRow
from problems import FAMILIES, HAWQ_RESOURCES, HAWQ_TIES, crossed, hawq, make, random_problem, ruled, worked

BACKENDS: list[Backend] = ["cbc", "highs"]
WORDS = {"cbc": "CBC through PuLP: optimal within its tolerances", "highs": "HiGHS through PuLP: optimal within its tolerances"}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_rows_and_rules_within_a_billionth_of_the_largest_loss(backend: Backend, family: str, seed: int) -> None:
    problem = ruled(family, seed, 6, 4)
    solution, truth = ilp.solve(problem, backend=backend), brute_force(problem)
    if truth.choice is None:
        assert (solution.status, solution.smallest_limit) == (Status.INFEASIBLE, truth.smallest_limit)
        return
    assert solution.choice is not None
    assert not problem.rows.broken(solution.choice)
    assert solution.loss <= truth.loss + 1e-9 * problem.loss.max()
    assert solution.reason == WORDS[backend]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_from_1e_12_to_1e6(backend: Backend, seed: int) -> None:
    problem = random_problem("wide", seed, 60, 6)
    assert ilp.solve(problem, backend=backend).loss <= core.solve(problem).loss + 1e-9 * problem.loss.max()


@pytest.mark.parametrize("unit", [1e-12, 1e-5, 1e6])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_unit_of_the_losses_is_no_matter(backend: Backend, unit: float) -> None:
    """With its default tolerances and losses of 1e-5, CBC calls a choice optimal that loses three times as much."""
    problem = random_problem("layers", 1, 121, 3, holes=False)
    problem = replace(problem, loss=problem.loss * (unit / problem.loss.max()))
    assert ilp.solve(problem, backend=backend).loss == pytest.approx(core.solve(problem).loss, rel=1e-9)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_all_three_limits_of_a_published_problem(quarter: int) -> None:
    problem, _ = merge_tied(hawq(*HAWQ_RESOURCES, quarter=quarter), HAWQ_TIES)
    solution, truth = ilp.solve(problem), brute_force(problem)
    assert solution.loss == pytest.approx(truth.loss, rel=1e-12)
    assert solution.certificate is not None
    assert len(solution.certificate.multipliers) == 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backends_own_word_is_no_proof(backend: Backend) -> None:
    answers = [ilp.solve(worked(limit), backend=backend) for limit in (12, 14)]
    assert [(answer.status, answer.proof) for answer in answers] == [
        (Status.FEASIBLE, "bound"),
        (Status.OPTIMAL, "multipliers"),
    ]
    assert [answer.loss for answer in answers] == pytest.approx([6.2, 3.5])
    assert answers[0].solver == "ilp"


def test_an_objective_is_told_from_the_least_of_its_item_and_up_to_a_million() -> None:
    problem = make(
        [[5.0, 7.0, 9.0], [1.0, 2.0, 3.0]], [[0, 0, 0], [0, 0, 0]], 1, allowed=[[False, True, True], [True, True, True]]
    )
    assert objective_of(scaled(problem)).tolist() == [0.0, 1e6, 0.0, 5e5, 1e6]


def test_a_row_loses_its_common_divisor_and_its_bound_what_no_choice_reaches() -> None:
    problem = make([[0.0, 0.0], [0.0, 0.0]], [[7, 13], [10, 1]], 19)
    row = ReducedRow.of(scaled(problem), 0)
    assert (row.weights.tolist(), row.base, row.divisor) == ([[0, 2], [3, 0]], 8, 3)
    assert row.bounds(0, 19) == (None, 3)  # 19 - 8 = 11 is no multiple of 3
    assert row.bounds(12, 22) == (2, 4)  # 12 - 8 = 4 is two steps at least
    assert row.bounds(8, 23) == (None, None)  # all choices keep these
    assert row.bounds(-(2**62), 2**62) == (None, None)


def test_where_only_a_divisor_tells_that_the_limit_is_out_of_reach() -> None:
    """All slopes alike, costs multiples of 3, the limit none: as it stands, CBC does not finish this in a quarter of a minute."""
    problem = random_problem("linear", 6, 40, 5)
    solution = ilp.solve(problem, time_limit=20.0)
    assert solution.status is Status.FEASIBLE
    assert solution.loss == core.solve(problem).loss


def test_a_row_that_is_one_number_whatever_is_chosen() -> None:
    problem = make([[1.0, 0.0]], [[[3, 3]], [[1, 2]]], 2, 5)
    assert ilp.solve(problem).status is Status.INFEASIBLE
    assert ilp.solve(make([[1.0, 0.0]], [[[3, 3]], [[1, 2]]], 3, 5)).loss == 0.0


def test_limits_that_exclude_each_other() -> None:
    problem = make([[0.0, 0.0], [0.0, 0.0]], [[[1, 5], [1, 5]], [[5, 1], [5, 1]]], 5, 5)
    solution = ilp.solve(problem)
    assert (solution.status, solution.choice, solution.smallest_limit) == (Status.INFEASIBLE, None, (10, 10))
    assert solution.blocking == ("the limit of resource 0", "the limit of resource 1")


def test_a_backends_word_that_there_is_no_choice_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ilp, "_run", lambda *given: (-1, False))
    for problem in (worked(12), replace(worked(12), rules=(forbid((0, 2), (1, 2)),)), crossed(20)):
        solution = ilp.solve(problem)
        assert solution.status is not Status.INFEASIBLE
        assert "found no choice" in solution.reason
        assert solution.choice is not None
        assert not problem.rows.broken(solution.choice)


def test_a_choice_beyond_a_bound_tightens_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that breaks a limit of 5 by 2 is asked for 3 next, and its floor of 4, missed by 1, becomes 5."""
    problem = replace(make([[3.0, 0.0]], [[0, 7]], 5), rules=())
    bounds: list[float] = []

    def run(model: Any, *_: Any) -> tuple[int, bool]:
        bounds.append(-list(model.constraints())[-1].constant)
        for variable, value in zip(model.variables(), (0.0, 1.0), strict=True):
            variable.varValue = value
        return 1, True

    monkeypatch.setattr(ilp, "_run", run)
    monkeypatch.setattr(ReducedRow, "of", classmethod(lambda cls, tables, row: cls(tables.rows.table(row), 0, 1)))
    found = ilp.search(scaled(problem), math.inf, "cbc")
    assert (found.choice, found.done) == (None, False)
    assert bounds == [5.0, 3.0, 1.0, -1.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_time_limit_leaves_the_better_of_two_choices(backend: Backend) -> None:
    problem = random_problem("layers", 12, 60, 7)
    solution = ilp.solve(problem, time_limit=0.0, backend=backend)
    assert solution.status is Status.LIMIT
    assert solution.choice is not None
    assert "stopped by the time limit" in solution.reason
    assert ilp.solve(replace(problem, rules=(count(range(60), [0], at_most=3),)), time_limit=0.0).status is Status.LIMIT


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_printed_and_nothing_left_behind(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ilp.solve(random_problem("layers", 1, 30, 4), backend=backend)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_cbc_leaves_nothing_behind_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ilp, "cbc_path", lambda: "false")
    with pytest.raises(pulp.PulpSolverError):
        ilp.solve(worked(12))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_backend_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="the backends of ilp are 'cbc' and 'highs', not 'glpk'"):
        ilp.solve(worked(12), backend="glpk")  # type: ignore[arg-type]
    monkeypatch.setattr(ilp, "cbc_path", lambda: None)
    with pytest.raises(ValueError, match="'cbc' needs the program cbc: pip install 'pulp"):
        ilp.solve(worked(12))
    monkeypatch.setattr(pulp.HiGHS, "available", lambda self: False)
    with pytest.raises(ValueError, match="'highs' needs highspy: pip install highspy"):
        ilp.solve(worked(12), backend="highs")


def test_the_same_problem_gets_the_same_answer() -> None:
    problem: ChoiceProblem = crossed(30)
    first, second = ilp.solve(problem), ilp.solve(problem)
    assert first.choice is not None
    assert second.choice is not None
    assert np.array_equal(first.choice, second.choice)
