from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from bitplan.solvers import ChoiceProblem, Status, balance, count
from bitplan.solvers.highs import Found, least
from bitplan.solvers.worst import Threshold, WorstSolution, check_threshold, solve_worst
from problems import FAMILIES, make, padded, random_problem, worked

LEAST = "bitplan.solvers.worst.least"


def by_hand(problem: ChoiceProblem) -> tuple[float, float] | None:
    """The least worst loss and the least sum among its choices, by trying every choice."""
    options = [np.flatnonzero(row).tolist() for row in problem.allowed]
    rows, items = problem.rows, np.arange(problem.items)
    losses = [problem.loss[items, choice] for choice in map(np.array, itertools.product(*options)) if not rows.broken(choice)]
    return min(((float(lost.max()), math.fsum(lost.tolist())) for lost in losses), default=None)


def hold(problem: ChoiceProblem, solution: WorstSolution) -> None:
    """What a solution promises."""
    assert solution.choice is not None
    assert not problem.rows.broken(solution.choice)
    lost = problem.loss[np.arange(problem.items), solution.choice]
    assert lost.max() <= solution.worst
    assert solution.loss == math.fsum(lost.tolist())
    assert solution.threshold is not None
    assert solution.threshold.below < solution.worst
    assert check_threshold(problem, solution.threshold) == (solution.proof == "multipliers")


def several(seed: int) -> ChoiceProblem:
    """Two limits, a floor and two rules; feasible, as a random choice keeps them."""
    rng = np.random.default_rng(seed)
    loss, cost = rng.integers(0, 30, (5, 4)).astype(np.float64), rng.integers(0, 20, (2, 5, 4))
    choice = rng.integers(0, 4, 5)
    totals = cost[:, np.arange(5), choice].sum(axis=1)
    half = int((choice < 2).sum())
    rules = (count(range(5), (0, 1), exactly=half), count((0, 1), (3,), at_most=int((choice[:2] == 3).sum())))
    floor = np.array([max(0, totals[0] - 10), 0])
    return ChoiceProblem(loss, cost, totals + 2, np.ones((5, 4), dtype=np.bool_), floor, rules)


@pytest.mark.parametrize(
    ("limit", "largest", "total"), [(8, 9, 16), (9, 5, 11), (10, 5, 8), (11, 4, 9.2), (12, 3.2, 6.2), (14, 2, 3.5), (16, 1, 1.7)]
)
def test_the_textbook_instance(limit: int, largest: float, total: float) -> None:
    """At 11 the worst loss falls to 4, at the price of a larger sum than the least one, 7.5."""
    solution = solve_worst(worked(limit))
    assert (solution.worst, solution.status, solution.proof) == (largest, Status.OPTIMAL, "multipliers")
    assert solution.loss == pytest.approx(total)
    hold(worked(limit), solution)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("family", FAMILIES)
def test_one_limit_against_every_choice(family: str, seed: int) -> None:
    problem = random_problem(family, seed, 1 + seed, 4)
    solution = solve_worst(problem)
    hold(problem, solution)
    known = by_hand(problem)
    assert known is not None
    assert solution.worst == known[0]
    assert solution.loss == pytest.approx(known[1], rel=1e-12)
    assert (solution.status, solution.proof) == (Status.OPTIMAL, "multipliers")


@pytest.mark.parametrize("seed", range(14))
def test_several_rows_against_every_choice(seed: int) -> None:
    problem = several(seed)
    solution = solve_worst(problem)
    hold(problem, solution)
    assert (solution.worst, solution.loss) == by_hand(problem)
    assert solution.proof in ("multipliers", "search")
    assert solution.status is Status.OPTIMAL


def test_prices_of_several_rows_prove_a_threshold() -> None:
    """Neither limit alone rules out the small losses; half of each does."""
    problem = make([[0.0, 7.0]] * 2 + [[0.0, 7.0]] * 2, [[[2, 0]] * 2 + [[0, 0]] * 2, [[0, 0]] * 2 + [[2, 0]] * 2], 4, 3)
    solution = solve_worst(problem)
    assert (solution.worst, solution.loss, solution.proof) == (7.0, 7.0, "multipliers")
    threshold = Threshold(0.0, None, (Fraction(0), Fraction(1, 3)))
    assert check_threshold(problem, threshold)
    assert not check_threshold(problem, replace(threshold, multipliers=(Fraction(1), Fraction(0))))
    assert check_threshold(problem, replace(threshold, multipliers=(Fraction(1, 2), Fraction(1))))  # 2 + 4 > 2 + 3
    assert not check_threshold(problem, replace(threshold, multipliers=(Fraction(2), Fraction(0))))


def odd() -> ChoiceProblem:
    """3 is to be spent, exactly; options of small loss cost 0 or 2, whose mixes reach 3 and whose choices do not."""
    problem = make([[1.0, 1.0, 9.0]] * 3, [[0, 2, 3]] * 3, 3)
    return ChoiceProblem(problem.loss, problem.cost, problem.limit, problem.allowed, np.array([3]))


def test_where_only_whole_numbers_rule_it_out_the_proof_is_a_search() -> None:
    solution = solve_worst(odd())
    assert (solution.worst, solution.loss, solution.proof, solution.status) == (9.0, 11.0, "search", Status.OPTIMAL)
    hold(odd(), solution)


def test_without_the_exact_lists_the_word_of_highs_is_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitplan.solvers.worst.SECONDS_FOR_LISTS", -1.0)
    solution = solve_worst(odd())
    assert (solution.worst, solution.loss, solution.proof, solution.status) == (9.0, 11.0, "bound", Status.FEASIBLE)
    hold(odd(), solution)


def test_a_floor_is_priced_from_below() -> None:
    problem = make([[0.0, 5.0]] * 3, [[1, 4]] * 3, 100)
    dear = ChoiceProblem(problem.loss, problem.cost, problem.limit, problem.allowed, np.array([4]))
    solution = solve_worst(dear)
    assert (solution.worst, solution.loss, solution.proof) == (5.0, 5.0, "multipliers")
    assert solution.threshold is not None
    assert solution.threshold.multipliers[0] < 0


def test_the_checker_refuses_what_is_not_so() -> None:
    problem = worked(11)
    assert check_threshold(problem, Threshold(3.2, None, (Fraction(1),)))
    assert check_threshold(problem, Threshold(3.2, None, (Fraction(10**30, 7),)))
    assert not check_threshold(problem, Threshold(4.0, None, (Fraction(1),)))  # (1, 1, 0) has no loss above 4
    assert not check_threshold(problem, Threshold(3.2, 0, ()))  # option 2 of item 0 loses 1
    assert check_threshold(problem, Threshold(0.9, 0, ()))
    assert not check_threshold(problem, Threshold(3.2, None, ()))
    assert not check_threshold(problem, Threshold(3.2, None, (Fraction(0),)))
    with pytest.raises(ValueError, match="needs 1 multipliers"):
        check_threshold(problem, Threshold(3.2, None, (Fraction(1), Fraction(1))))
    ruled = replace(problem, rules=(count((0, 1), (0,), at_least=1),))
    with pytest.raises(ValueError, match="not bounded above"):
        check_threshold(ruled, Threshold(3.2, None, (Fraction(1), Fraction(1))))


def test_the_tables_least_loss_needs_no_smaller_one() -> None:
    solution = solve_worst(make(np.ones((3, 2)), np.ones((3, 2), dtype=int), 3))
    assert (solution.worst, solution.loss, solution.status) == (1.0, 3.0, Status.OPTIMAL)
    assert solution.threshold == Threshold(-math.inf, 0, ())


def test_the_second_stage_is_certified_over_the_options_left() -> None:
    problem = worked(12)
    solution = solve_worst(problem)
    assert solution.sums.certificate is not None
    assert solution.sums.certificate.lower_bound <= Fraction(solution.loss) * solution.sums.certificate.loss_scale + 2
    assert solution.sums.status is Status.OPTIMAL


def test_no_choice_at_all() -> None:
    solution = solve_worst(worked(7))
    assert (solution.choice, solution.status, solution.sums.smallest_limit) == (None, Status.INFEASIBLE, (8,))
    assert math.isinf(solution.worst)
    contradicting = replace(worked(8), rules=(count((0, 1, 2), (2,), at_least=1),))
    solution = solve_worst(contradicting)
    assert (solution.choice, solution.status, solution.sums.smallest_limit) == (None, Status.INFEASIBLE, (10,))


def test_a_time_limit_of_nothing() -> None:
    problem = random_problem("layers", 12, 60, 7)
    plain = solve_worst(problem, time_limit=0.0)
    hold(problem, plain)
    assert plain.worst == solve_worst(problem).worst
    assert plain.status is not Status.OPTIMAL
    hurried = solve_worst(several(0), time_limit=0.0)
    assert (hurried.choice, hurried.status) == (None, Status.LIMIT)


def test_time_that_runs_out_leaves_the_worst_loss_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = itertools.count()
    monkeypatch.setattr(LEAST, lambda *given: least(*given) if next(asked) == 0 else Found(None, False))
    problem = several(0)
    solution = solve_worst(problem)
    assert (solution.status, solution.proof) == (Status.LIMIT, "bound")
    assert solution.choice is not None
    assert solution.threshold is not None
    known = by_hand(problem)
    assert known is not None
    assert solution.threshold.below < known[0] <= solution.worst


def test_a_choice_that_highs_misses_is_found_by_the_exact_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = itertools.count()
    monkeypatch.setattr(LEAST, lambda *given: least(*given) if next(asked) == 0 else Found(None, True))
    for seed in range(5):
        asked = itertools.count()
        solution = solve_worst(several(seed))
        assert (solution.worst, solution.loss) == by_hand(several(seed))


def test_ragged_items_and_a_balance() -> None:
    problem = replace(padded([[(0, 4.0), (3, 1.0)], [(0, 2.0)], [(0, 6.0), (2, 5.0), (4, 0.0)]], 7), rules=())
    ruled = replace(problem, rules=(balance((0, 2), up=(1,), down=(2,)),))
    solution = solve_worst(ruled)
    assert solution.choice is not None
    assert solution.choice.tolist() == [1, 0, 2]
    assert (solution.worst, solution.loss) == by_hand(ruled)
