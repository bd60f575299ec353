from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bitplan.solvers import ChoiceProblem, Status, balance, brute_force, core, count, evolution, hull, scaled, uniform
from bitplan.solvers.evolution import Ladder, Mutation, kept, mutate, switches
from problems import FAMILIES, make, padded, random_problem, ruled, worked

Ints = npt.NDArray[np.int64]


def alike(seed: int, items: int, levels: int, spend: float) -> ChoiceProblem:
    """Items of one size, whole bits, losses that fall about fourfold with each: what EvoPress is made for."""
    rng = np.random.default_rng(seed)
    loss = np.exp(rng.normal(0, 1.5, (items, 1))) * 2.0 ** (-rng.uniform(1, 2.5, (items, 1)) * np.arange(levels))
    return make(loss, np.tile(np.arange(levels), (items, 1)), round(spend * items))


def test_one_two_and_three_switches_by_five_three_and_one_ninths() -> None:
    drawn = np.bincount(switches(90_000, np.random.default_rng(0)), minlength=4)
    # Standard deviations: sqrt(90000 p (1 - p)) = 149, 141, 94.
    assert np.all(np.abs(drawn - [0, 50_000, 30_000, 10_000]) <= [0, 4 * 149, 4 * 141, 4 * 94])


@pytest.mark.parametrize("seed", range(3))
def test_switches_stay_within_classes_and_leave_every_total_as_it_was(seed: int) -> None:
    """Two resources, two classes of equal items and one loner; steps of unequal costs, so that only equal ones may pair up."""
    rng = np.random.default_rng(seed)
    sizes = np.array([3, 3, 3, 3, 7, 7, 7, 50])
    bits = np.array([2, 3, 4, 8])
    cost = np.stack([np.outer(sizes, bits), np.outer(sizes, [9, 6, 5, 1])])
    problem = make(rng.random((8, 4)), cost, 10**6, 10**6)
    ladder = Ladder.of(scaled(problem))
    choice = np.array([1, 2, 1, 0, 1, 2, 0, 1])
    mutants = mutate(ladder, choice, 500, rng)
    assert len(mutants) > 100
    classes = [slice(0, 4), slice(4, 7), slice(7, 8)]

    def spent(taken: Ints) -> list[list[int]]:
        by_item = problem.cost[:, np.arange(8), taken]
        return [by_item[:, members].sum(axis=1).tolist() for members in classes]

    for mutant in mutants:
        assert spent(mutant) == spent(choice)
        assert mutant[7] == choice[7]
        assert np.abs(mutant - choice).sum() in (0, 2, 4, 6)


def test_costs_that_fall_with_the_column_are_climbed_by_cost() -> None:
    problem = make([[0.0, 1.0, 2.0]] * 2, [[5, 3, 1]] * 2, 6)
    mutants = mutate(Ladder.of(scaled(problem)), np.array([1, 1]), 50, np.random.default_rng(0))
    assert {tuple(mutant) for mutant in mutants.tolist()} >= {(0, 2), (2, 0)}


def test_no_forbidden_option_is_ever_taken() -> None:
    problem = random_problem("layers", 3, 20, 6)
    choice = hull.solve(problem).choice
    assert choice is not None
    mutants = mutate(Ladder.of(scaled(problem)), choice, 500, np.random.default_rng(0), "exchange")
    assert len(mutants) > 100
    assert problem.allowed[np.arange(20), mutants].all()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exchange_keeps_the_limit_in_few_steps(family: str) -> None:
    problem = random_problem(family, 2, 30, 6)
    choice, tables = hull.solve(problem).choice, scaled(problem)
    assert choice is not None
    ladder = Ladder.of(tables)
    mutants = mutate(ladder, choice, 500, np.random.default_rng(1), "exchange")
    assert len(mutants)
    assert kept(tables.rows, mutants).all()
    assert max(np.abs(ladder.levels(mutant) - ladder.levels(choice)).sum() for mutant in mutants) <= 10


@pytest.mark.parametrize(("step", "some"), [(4, True), (3, False)])
def test_an_exchange_that_gets_back_less_than_four_fifths_is_turned_down(step: int, some: bool) -> None:
    # Without slack, the small item's step costs `step`, and making room for it gives up the large one's 5: 0.8, or 0.6.
    problem = padded([[(0, 1.0), (step, 0.0)], [(0, 1.0), (5, 0.0)]], 5)
    mutants = mutate(Ladder.of(scaled(problem)), np.array([0, 1]), 200, np.random.default_rng(0), "exchange")
    assert any(mutant.tolist() == [1, 0] for mutant in mutants) is some


def test_exchanges_of_more_than_ten_steps_are_turned_down() -> None:
    # Room for the large item's step takes 12 steps of small ones, or 9.
    for small, some in ((12, False), (9, True)):
        problem = padded([[(0, 9.0), (small, 0.0)], *[[(0, 1.0), (1, 0.0)]] * small], small)
        choice = np.array([0] + [1] * small)
        mutants = mutate(Ladder.of(scaled(problem)), choice, 2000, np.random.default_rng(0), "exchange")
        assert bool((mutants[:, 0] == 1).any()) is some


@pytest.mark.parametrize("seed", range(4))
def test_with_the_tables_loss_it_reaches_the_optimum_from_one_format_everywhere(seed: int) -> None:
    """Methods dossier 10.6: a synthetic additive fitness must lead to the optimum of the knapsack."""
    problem = alike(seed, 12, 5, 2.0)
    start = np.full(12, 2)
    solution, best = evolution.solve(problem, start=start, seed=seed), core.solve(problem)
    assert uniform.single_format(problem) is not None
    assert solution.loss == pytest.approx(best.loss, rel=1e-12)
    assert solution.loss < 0.9 * problem.loss[np.arange(12), start].sum()
    assert solution.certificate is not None
    assert best.certificate is not None
    assert solution.certificate.lower_bound == best.certificate.lower_bound


def test_it_improves_on_the_hull_where_sizes_differ() -> None:
    problem = random_problem("layers", 1, 7, 4)
    assert evolution.solve(problem).loss == core.solve(problem).loss < hull.solve(problem).loss


class Judge:
    """A fitness of its own mind, which keeps what it was asked."""

    def __init__(self, weight: npt.NDArray[np.float64], noise: float = 0.0) -> None:
        self.weight, self.noise, self.rng = weight, noise, np.random.default_rng(5)
        self.asked: list[tuple[Ints, int]] = []

    def true(self, choices: Ints) -> npt.NDArray[np.float64]:
        value: npt.NDArray[np.float64] = self.weight[np.arange(choices.shape[1]), choices].sum(axis=1)
        return value

    def __call__(self, choices: Ints, stage: int) -> npt.NDArray[np.float64]:
        self.asked.append((choices.copy(), stage))
        return self.true(choices) + self.noise * self.rng.normal(size=len(choices)) * (stage < 2)


def test_it_follows_the_fitness_and_not_the_table() -> None:
    problem = alike(0, 12, 5, 2.0)
    judge = Judge(problem.loss[::-1])
    solution = evolution.solve(problem, fitness=judge)
    flipped = core.solve(replace(problem, loss=problem.loss[::-1]))
    assert solution.choice is not None
    assert judge.true(solution.choice[None])[0] == pytest.approx(flipped.loss, rel=1e-12)
    assert solution.loss > core.solve(problem).loss
    assert (solution.status, solution.proof) == (Status.FEASIBLE, "bound")


def test_stages_thin_out_distinct_offspring_and_the_parent_joins_the_last() -> None:
    problem = alike(1, 20, 5, 2.0)
    judge = Judge(problem.loss[::-1])
    start = np.full(20, 2)
    evolution.solve(problem, fitness=judge, start=start, generations=6, offspring=40, stages=(8, 3, 1))
    assert [(len(choices), stage) for choices, stage in judge.asked] == [(40, 0), (8, 1), (4, 2)] * 6 + [(2, 2)]
    parent = start
    for first, last in zip(judge.asked[0:-1:3], judge.asked[2:-1:3], strict=True):
        everyone = {tuple(choice) for choice in first[0].tolist()}
        assert len(everyone) == 40
        assert tuple(parent.tolist()) not in everyone
        assert last[0][0].tolist() == parent.tolist()
        parent = last[0][judge.true(last[0]).argmin()]
    assert judge.asked[-1][0].tolist() == [start.tolist(), parent.tolist()]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_by_the_last_stage_never_worse_than_the_start(family: str, seed: int) -> None:
    problem = random_problem(family, seed, 15, 4)
    start = hull.solve(problem).choice
    assert start is not None
    judge = Judge(np.random.default_rng(seed).random((15, 4)), noise=1.0)
    solution = evolution.solve(problem, fitness=judge, seed=seed, generations=10, offspring=16, stages=(4, 2, 1))
    assert solution.choice is not None
    assert judge.true(solution.choice[None])[0] <= judge.true(start[None])[0]


def test_a_fitness_that_changes_its_mind_ends_with_the_start() -> None:
    """It takes whatever is new for better, until the last comparison, of two, where the start is."""
    problem = alike(0, 12, 5, 2.0)
    start = np.full(12, 2)

    def fickle(choices: Ints, stage: int) -> Ints:
        order = -np.arange(len(choices))
        return -order if len(choices) == 2 else order

    solution = evolution.solve(problem, fitness=fickle, start=start, generations=5)
    assert solution.choice is not None
    assert solution.choice.tolist() == start.tolist()


def test_the_seed_decides() -> None:
    problem = alike(3, 40, 5, 2.0)
    given: dict[str, Any] = {"start": np.full(40, 2), "generations": 5}
    first, again, other = (evolution.solve(problem, seed=seed, **given).choice for seed in (1, 1, 2))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize("mutation", ["switch", "exchange"])
def test_rules_and_floors_are_kept(mutation: Mutation) -> None:
    problem = alike(2, 14, 4, 1.5)
    rules = (count(range(7), [3], at_most=1), balance(range(14), [0], [3]))
    problem = replace(problem, rules=rules, floor=np.array([20]))
    solution = evolution.solve(problem, fitness=Judge(problem.loss[::-1]), mutation=mutation, generations=30)
    assert solution.choice is not None
    assert not problem.rows.broken(solution.choice)
    plain = evolution.solve(problem, fitness=Judge(problem.loss[::-1]), mutation=mutation, generations=0)
    assert plain.choice is not None
    assert plain.choice.tolist() != solution.choice.tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", FAMILIES)
def test_where_there_is_a_choice_it_has_one(family: str, seed: int) -> None:
    problem = ruled(family, seed, 5, 3)
    solution, truth = evolution.solve(problem, generations=10, offspring=16), brute_force(problem)
    assert (solution.choice is None) == (truth.choice is None)
    if solution.choice is None:
        assert (solution.status, solution.smallest_limit) == (Status.INFEASIBLE, truth.smallest_limit)
    else:
        assert not problem.rows.broken(solution.choice)
        assert solution.loss >= truth.loss * (1 - 1e-12)


def test_it_ends_when_the_parents_stay_what_they_are() -> None:
    problem = alike(1, 20, 5, 2.0)
    judge = Judge(np.zeros((20, 5)))
    evolution.solve(problem, fitness=judge, patience=3, stages=(1,))
    assert len(judge.asked) == 3 + 1


def test_it_ends_where_nothing_better_is_possible() -> None:
    solution = evolution.solve(worked(14))
    assert (solution.status, solution.proof, solution.loss) == (Status.OPTIMAL, "multipliers", 3.5)
    lonely = make([[1.0, 0.0]], [[1, 2]], 1)
    assert evolution.solve(lonely, fitness=Judge(lonely.loss)).choice is not None


def test_a_time_limit_of_nothing_gives_the_start() -> None:
    problem = alike(1, 20, 5, 2.0)
    solution = evolution.solve(problem, start=np.full(20, 2), time_limit=0.0)
    assert solution.choice is not None
    assert (solution.status, set(solution.choice.tolist())) == (Status.LIMIT, {2})


def test_what_makes_no_sense_is_refused() -> None:
    problem = alike(1, 6, 4, 1.0)
    with pytest.raises(ValueError, match="breaks a bound: resource 0 is 18, more than 6"):
        evolution.solve(problem, start=np.full(6, 3))
    with pytest.raises(ValueError, match="stages that end with 1"):
        evolution.solve(problem, stages=(4, 2))
    with pytest.raises(ValueError, match=r"as many numbers, not an array of shape \(\)"):
        evolution.solve(problem, fitness=lambda choices, stage: np.array(1.0))
    assert evolution.solve(worked(7)).smallest_limit == (8,)
