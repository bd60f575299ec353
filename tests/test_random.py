from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from bitplan.solvers import Status, core, count, random, scaled
from bitplan.solvers.greedy import cheapest_choice
from problems import FAMILIES, crossed, make, random_problem, worked


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_it_spends_until_no_upgrade_fits(family: str, seed: int) -> None:
    problem = random_problem(family, seed, 40, 5)
    solution = random.solve(problem, seed=seed)
    assert solution.choice is not None
    assert solution.cost[0] <= problem.limit[0]
    rows = np.arange(40)
    saves = problem.loss < problem.loss[rows, solution.choice][:, None]
    more = problem.cost[0] - problem.cost[0][rows, solution.choice][:, None]
    assert not np.any(problem.allowed & saves & (more > 0) & (more <= problem.limit[0] - solution.cost[0]))


def test_every_affordable_upgrade_is_as_likely() -> None:
    """Two items alike and room for two units: the first to be drawn jumps one or two, and leaves the other one or none."""
    problem = make([[2.0, 1.0, 0.0]] * 2, [[0, 1, 2]] * 2, 2)
    tables, rng = scaled(problem), np.random.default_rng(0)
    start = cheapest_choice(tables, 0.0).choice
    assert start is not None
    draws = [tuple(random.draw(tables, start, rng).tolist()) for _ in range(4000)]
    # Probabilities 1/2 (one each), 1/4, 1/4; the counts' standard deviations are 32, 27 and 27.
    assert set(draws) == {(1, 1), (2, 0), (0, 2)}
    assert abs(draws.count((1, 1)) - 2000) < 4 * 32
    assert abs(draws.count((2, 0)) - 1000) < 4 * 27


def test_upgrades_lose_less_and_cost_more() -> None:
    problem = make([[5.0, 6.0, 4.0]], [[1, 2, 3]], 2)
    assert random.solve(problem).loss == 5.0


def test_the_seed_decides() -> None:
    problem = random_problem("layers", 1, 60, 6)
    first, again, other = (random.solve(problem, seed=seed).choice for seed in (1, 1, 2))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_the_best_of_more_draws_is_no_worse_and_the_optimum_better() -> None:
    problem = random_problem("layers", 1, 60, 6)
    losses = [random.solve(problem, seed=3, draws=draws).loss for draws in (1, 5, 25)]
    assert losses[0] >= losses[1] >= losses[2] > core.solve(problem).loss
    assert losses[0] > losses[2]


def test_a_time_limit_leaves_one_draw() -> None:
    problem = random_problem("layers", 1, 60, 6)
    solution = random.solve(problem, draws=1000, time_limit=0.0)
    assert (solution.status, solution.loss) == (Status.LIMIT, random.solve(problem).loss)
    assert random.solve(problem, time_limit=0.0).status is Status.FEASIBLE


def test_several_resources_keep_every_limit() -> None:
    problem = crossed(60)
    solution = random.solve(problem)
    assert solution.certificate is not None
    assert np.all(solution.cost <= problem.limit)
    assert len(solution.certificate.multipliers) == 2


def test_what_it_cannot_keep_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"limits and nothing else, not a floor, 1 rules; use `best`"):
        random.solve(replace(worked(12), floor=np.array([9]), rules=(count([0], [1], at_most=0),)))
    with pytest.raises(ValueError, match="at least one draw, not 0"):
        random.solve(worked(12), draws=0)
    solution = random.solve(worked(7))
    assert (solution.status, solution.smallest_limit, solution.solver) == (Status.INFEASIBLE, (8,), "random")


def test_the_random_of_python_stays_what_it_is() -> None:
    code = "import bitplan.solvers.random, random; print(random.Random(0).randint(1, 1))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
