"""What every entry of SOLVERS promises, held against each on every known problem and on random ones.

Certificates are checked by `check`, which knows nothing of the package: the program that a stranger would write.
"""

from __future__ import annotations

import functools
import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from bitplan.solvers import SOLVERS, ChoiceProblem, Rule, Solution, Status, brute_force
from problems import FAMILIES, KNOWN, KNOWN_RULED, Known, random_problem, ruled, worked

EXACT = ("best", "core", "dp")  # whatever they take, they solve and prove
ANY_ROWS = ("best", "convex", "dp", "ilp", "lagrangian", "milp")  # take several resources, floors and rules
ONE_STRUCTURE = ("pairing", "segment_dp")  # take problems of one shape only; theirs are in their own tests
IN_ITEM_ORDER = ("evolution", "random", "uniform")  # treat the first items first, or draw lots in item order
ANY_PLAIN = tuple(name for name in SOLVERS if name not in ONE_STRUCTURE)


def check(document: dict[str, Any]) -> tuple[int, Fraction]:
    """Loss (scaled) and lower bound of a certificate: plain integers and fractions in, AssertionError if it is not valid.

    A row is a table of numbers a[i][j] with bounds (None: unbounded): least <= sum_i a[i][choice[i]] <= most.
    """
    loss, rows, choice = document["loss"], document["rows"], document["choice"]
    prices = [Fraction(*pair) for pair in document["multipliers"]]
    assert len(prices) == len(rows)
    bound = Fraction(0)
    for price, (table, least, most) in zip(prices, rows, strict=True):
        total = sum(row[j] for row, j in zip(table, choice, strict=True))
        assert least is None or least <= total
        assert most is None or total <= most
        if price != 0:
            edge = most if price > 0 else least
            assert edge is not None
            bound -= price * edge
    total = 0
    for i, row in enumerate(loss):
        assert row[choice[i]] is not None
        total += row[choice[i]]
        bound += min(
            lost + sum((price * table[i][j] for price, (table, _, _) in zip(prices, rows, strict=True)), Fraction(0))
            for j, lost in enumerate(row)
            if lost is not None
        )
    assert bound <= total
    return total, bound


def document_of(problem: ChoiceProblem, solution: Solution) -> dict[str, Any]:
    assert solution.certificate is not None
    assert solution.choice is not None
    scale = solution.certificate.loss_scale
    return {
        "loss": [
            [round(Fraction(lost) * scale) if ok else None for lost, ok in zip(row, mask, strict=True)]
            for row, mask in zip(problem.loss.tolist(), problem.allowed.tolist(), strict=True)
        ],
        "rows": [
            *zip(problem.cost.tolist(), problem.floor.tolist(), problem.limit.tolist(), strict=True),
            *((weights(problem, rule), rule.least, rule.most) for rule in problem.rules),
        ],
        "choice": solution.choice.tolist(),
        "multipliers": [(price.numerator, price.denominator) for price in solution.certificate.multipliers],
    }


def weights(problem: ChoiceProblem, rule: Rule) -> list[list[int]]:
    table = [[0] * problem.loss.shape[1] for _ in range(problem.items)]
    for item, option, weight in zip(rule.item.tolist(), rule.option.tolist(), rule.weight.tolist(), strict=True):
        table[item][option] = weight
    return table


def hold(problem: ChoiceProblem, solution: Solution) -> int:
    """Everything that an answer with a choice promises. Returns its scaled loss."""
    assert solution.choice is not None
    assert solution.certificate is not None
    assert solution.choice.dtype == np.int64
    rows = np.arange(problem.items)
    assert problem.allowed[rows, solution.choice].all()
    assert solution.loss == math.fsum(problem.loss[rows, solution.choice].tolist())
    assert solution.cost.tolist() == problem.cost[:, rows, solution.choice].sum(axis=1).tolist()
    assert np.all(solution.cost <= problem.limit)
    loss, bound = check(document_of(problem, solution))
    assert solution.certificate.lower_bound == bound
    assert solution.certificate.gap == loss - bound
    rounding = Fraction(problem.items, 2) + Fraction(math.ulp(solution.loss)) * solution.certificate.loss_scale
    assert bound <= Fraction(solution.loss) * solution.certificate.loss_scale + rounding
    assert (solution.proof == "multipliers") == (solution.certificate.gap == 0)
    assert (solution.status is Status.OPTIMAL) == (solution.proof != "bound")
    assert solution.status is not Status.INFEASIBLE
    assert (solution.smallest_limit, solution.blocking) == (None, ())
    assert solution.seconds >= 0
    assert solution.solver in SOLVERS
    return loss


@pytest.fixture(params=ANY_PLAIN)
def solver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def changed(problem: ChoiceProblem, **tables: Any) -> ChoiceProblem:
    given = {name: getattr(problem, name) for name in ("loss", "cost", "limit", "allowed", "floor", "rules")}
    return ChoiceProblem(**{**given, **tables})


@pytest.mark.parametrize("known", KNOWN, ids=str)
def test_known_answers(solver: str, known: Known) -> None:
    solution = SOLVERS[solver](known.problem)
    hold(known.problem, solution)
    assert solution.certificate is not None
    assert solution.choice is not None
    assert solution.loss >= known.loss - known.tolerance
    if known.bound is not None:
        bound = float(solution.certificate.lower_bound / solution.certificate.loss_scale)
        assert bound == pytest.approx(known.bound, abs=max(known.tolerance, 1e-9))
    if solver in EXACT:
        assert solution.status is Status.OPTIMAL
        assert solution.loss == pytest.approx(known.loss, abs=known.tolerance)
        if known.choice is not None:
            assert tuple(solution.choice.tolist()) == known.choice


def plain(family: str, seed: int) -> ChoiceProblem:
    return random_problem(family, seed, 1 + seed % 7, 2 + seed % 4)


@functools.cache
def best_of(family: str, seed: int) -> Solution:
    """Every choice tried, once for all solvers."""
    return brute_force(plain(family, seed))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("family", FAMILIES)
def test_no_choice_is_better_than_an_optimal_one(solver: str, family: str, seed: int) -> None:
    problem = plain(family, seed)
    solution, best = SOLVERS[solver](problem), best_of(family, seed)
    loss = hold(problem, solution)
    assert solution.certificate is not None
    assert best.choice is not None
    least = hold_scaled(problem, best.choice, solution.certificate.loss_scale)
    assert loss >= least - problem.items  # brute force adds floats, and may stop at another choice within rounding
    if solver in EXACT:
        assert solution.status is Status.OPTIMAL
    if solution.status is Status.OPTIMAL:
        assert loss <= least


def hold_scaled(problem: ChoiceProblem, choice: Any, scale: int) -> int:
    return sum(round(Fraction(float(problem.loss[i, j])) * scale) for i, j in enumerate(choice.tolist()))


@pytest.mark.parametrize("family", FAMILIES)
def test_larger_problems(solver: str, family: str) -> None:
    problem = random_problem(family, 99, 120, 8)
    hold(problem, SOLVERS[solver](problem))


def test_an_infeasible_problem_says_what_limit_would_do(solver: str) -> None:
    for problem in (worked(7), worked(-1), random_problem("layers", 3, 20, 5)):
        least = int(np.where(problem.allowed, problem.cost[0], problem.cost.max()).min(axis=1).sum())
        solution = SOLVERS[solver](changed(problem, limit=np.array([least - 1])))
        assert (solution.status, solution.choice, solution.certificate) == (Status.INFEASIBLE, None, None)
        assert solution.smallest_limit == (least,)
        assert solution.blocking == ("the limit of resource 0",)
        assert math.isinf(solution.loss)
        enough = SOLVERS[solver](changed(problem, limit=np.array([least])))
        hold(problem=changed(problem, limit=np.array([least])), solution=enough)
        assert enough.cost.tolist() == [least]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_problem_gets_the_same_answer(solver: str, family: str) -> None:
    problem = random_problem(family, 4, 60, 6)
    first, second = SOLVERS[solver](problem), SOLVERS[solver](changed(problem))
    assert first.choice is not None
    assert second.choice is not None
    assert first.choice.tolist() == second.choice.tolist()
    assert first.certificate == second.certificate


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", ["layers", "wild", "wide"])  # no ties: the answer itself is permuted
def test_permuting_items_permutes_the_answer(solver: str, family: str, seed: int) -> None:
    problem = random_problem(family, seed, 40, 5)
    order = np.random.default_rng(seed).permutation(40)
    tables = {"loss": problem.loss[order], "cost": problem.cost[:, order], "allowed": problem.allowed[order]}
    straight, permuted = SOLVERS[solver](problem), SOLVERS[solver](changed(problem, **tables))
    assert straight.choice is not None
    assert permuted.choice is not None
    assert straight.certificate is not None
    assert permuted.certificate is not None
    assert permuted.certificate.lower_bound == straight.certificate.lower_bound
    if solver not in IN_ITEM_ORDER:
        assert permuted.choice.tolist() == straight.choice[order].tolist()


@pytest.mark.parametrize("family", ["whole", "linear", "twins"])
def test_permuting_items_keeps_the_least_loss_among_ties(family: str) -> None:
    problem = random_problem(family, 1, 40, 5)
    tables = {"loss": problem.loss[::-1], "cost": problem.cost[:, ::-1], "allowed": problem.allowed[::-1]}
    for solver in EXACT:
        assert SOLVERS[solver](changed(problem, **tables)).loss == SOLVERS[solver](problem).loss


@pytest.mark.parametrize("family", FAMILIES)
def test_the_unit_of_the_losses_changes_no_choice(solver: str, family: str) -> None:
    problem = random_problem(family, 6, 40, 5)
    straight = SOLVERS[solver](problem)
    assert straight.choice is not None
    for factor in (2.0**-30, 2.0**9):
        other = SOLVERS[solver](changed(problem, loss=problem.loss * factor))
        assert other.choice is not None
        assert other.choice.tolist() == straight.choice.tolist()
        assert other.loss == straight.loss * factor
    if family in ("layers", "wild"):  # no ties for the rounding of the products to break
        other = SOLVERS[solver](changed(problem, loss=problem.loss * 1e-5 / 3))
        assert other.choice is not None
        assert other.choice.tolist() == straight.choice.tolist()


@pytest.mark.parametrize("family", ["layers", "wild", "wide"])
def test_a_dominated_option_changes_nothing(solver: str, family: str) -> None:
    if solver == "random":
        pytest.skip("draws lots among all options, so one more of them changes the draw")
    problem = random_problem(family, 8, 40, 5)
    tables = {
        "loss": np.hstack([problem.loss, problem.loss[:, :1] * 1.001]),
        "cost": np.concatenate([problem.cost, problem.cost[:, :, :1] + 1], axis=2),
        "allowed": np.hstack([problem.allowed, problem.allowed[:, :1]]),
    }
    straight, wider = SOLVERS[solver](problem), SOLVERS[solver](changed(problem, **tables))
    assert straight.choice is not None
    assert wider.choice is not None
    assert wider.choice.tolist() == straight.choice.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_more_budget_never_hurts(solver: str, family: str) -> None:
    problem = random_problem(family, 10, 30, 5)
    least = int(np.where(problem.allowed, problem.cost[0], problem.cost.max()).min(axis=1).sum())
    most = int(np.where(problem.allowed, problem.cost[0], 0).max(axis=1).sum())
    answers = [SOLVERS[solver](changed(problem, limit=np.array([limit]))) for limit in np.linspace(least, most, 8).astype(int)]
    bounds = [answer.certificate.lower_bound for answer in answers if answer.certificate is not None]
    assert len(bounds) == 8
    assert all(after <= before for before, after in itertools.pairwise(bounds))
    if solver in EXACT:
        losses = [answer.loss for answer in answers]
        assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(losses))
        assert losses[-1] == pytest.approx(np.where(problem.allowed, problem.loss, np.inf).min(axis=1).sum(), rel=1e-12)


def test_a_time_limit_of_nothing_still_gets_an_answer(solver: str) -> None:
    problem = random_problem("layers", 12, 60, 7)
    solution = SOLVERS[solver](problem, time_limit=0.0)
    hold(problem, solution)
    assert solution.status is not Status.OPTIMAL


@pytest.mark.parametrize("known", KNOWN_RULED, ids=str)
@pytest.mark.parametrize("name", ANY_ROWS)
def test_known_answers_under_rules(name: str, known: Known) -> None:
    solution = SOLVERS[name](known.problem)
    hold(known.problem, solution)
    assert solution.choice is not None
    assert solution.loss >= known.loss - known.tolerance
    if name in EXACT:
        assert solution.status is Status.OPTIMAL
        assert solution.loss == pytest.approx(known.loss, abs=known.tolerance)
        if known.choice is not None:
            assert tuple(solution.choice.tolist()) == known.choice


def solved_or_refused(name: str, problem: ChoiceProblem) -> tuple[Solution | None, str]:
    try:
        return SOLVERS[name](problem), ""
    except ValueError as error:
        return None, str(error)


@functools.cache
def best_of_ruled(family: str, seed: int) -> Solution:
    return brute_force(ruled(family, seed, 2 + seed, 3))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SOLVERS)
def test_rules_and_further_resources_are_kept_or_refused(name: str, family: str, seed: int) -> None:
    problem = ruled(family, seed, 2 + seed, 3)
    solution, refusal = solved_or_refused(name, problem)
    if solution is None:
        assert name not in ANY_ROWS
        assert "use `best`" in refusal
        return
    truth = best_of_ruled(family, seed)
    if solution.choice is None:
        assert solution.status is Status.LIMIT or truth.choice is None
        assert name in ("uniform", "random", "evolution", "greedy") or solution.status is Status.INFEASIBLE
    if solution.status is Status.INFEASIBLE:
        assert truth.choice is None
        assert solution.smallest_limit == truth.smallest_limit
        assert solution.blocking
    if solution.choice is None or truth.choice is None:
        return
    loss = hold(problem, solution)
    assert solution.certificate is not None
    least = hold_scaled(problem, truth.choice, solution.certificate.loss_scale)
    assert loss >= least - problem.items
    if name in EXACT or solution.status is Status.OPTIMAL:
        assert solution.status is Status.OPTIMAL
        assert loss <= least


def test_every_solver_says_what_it_is() -> None:
    firsts = [(solve.__doc__ or "").splitlines()[0] for solve in SOLVERS.values()]
    assert len(set(firsts)) == len(SOLVERS)
    assert all(len(first.split()) > 5 for first in firsts)
