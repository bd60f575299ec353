from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitplan.solvers import SOLVERS, Rule, Status, balance, brute_force, count, forbid, merge_tied, recompute
from problems import HAWQ_TIES, hawq, make, random_problem


def test_merging_adds_losses_and_costs_and_keeps_what_all_may_take() -> None:
    problem = make(
        [[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [64.0, 128.0, 256.0]],
        [[[1, 2, 3], [4, 5, 6], [7, 8, 9]], [[10, 20, 30], [40, 50, 60], [70, 80, 90]]],
        5,
        6,
        allowed=[[True, True, False], [True, True, True], [False, True, True]],
    )
    merged, invert = merge_tied(problem, [[2, 0]])
    assert merged.allowed.tolist() == [[False, True, False], [True, True, True]]
    assert merged.loss[0, 1] == 130.0
    assert merged.loss[1].tolist() == [8.0, 16.0, 32.0]
    assert merged.cost[:, 0, 1].tolist() == [10, 100]
    assert merged.cost[:, 1].tolist() == [[4, 5, 6], [40, 50, 60]]
    assert merged.limit.tolist() == [5, 6]
    assert invert(np.array([1, 2])).tolist() == [1, 2, 1]


@given(seed=st.integers(0, 2**32), labels=st.lists(st.integers(0, 4), min_size=7, max_size=7))
def test_loss_and_cost_survive_the_way_back(seed: int, labels: list[int]) -> None:
    problem = random_problem("layers", seed, 7, 3, holes=False)
    groups = [[item for item, label in enumerate(labels) if label == group] for group in set(labels)]
    merged, invert = merge_tied(problem, groups)
    choice = np.random.default_rng(seed).integers(0, 3, merged.items)
    whole = invert(choice)
    assert all(len(set(whole[group].tolist())) == 1 for group in groups)
    loss, cost = recompute(merged, choice)
    assert recompute(problem, whole)[0] == pytest.approx(loss, rel=1e-12)
    assert recompute(problem, whole)[1].tolist() == cost.tolist()


def test_no_groups_change_nothing() -> None:
    problem = random_problem("wild", 0, 5, 4)
    merged, invert = merge_tied(problem, [])
    assert np.array_equal(merged.loss, problem.loss)
    assert np.array_equal(merged.cost, problem.cost)
    assert invert(np.arange(5)).tolist() == [0, 1, 2, 3, 4]


def test_ties_cost_loss_and_are_kept() -> None:
    problem = hawq("bops", quarter=2)
    merged, invert = merge_tied(problem, HAWQ_TIES)
    tied, free = SOLVERS["dp"](merged), SOLVERS["dp"](problem)
    assert tied.choice is not None
    choice = invert(tied.choice)
    assert all(choice[first] == choice[second] for first, second in HAWQ_TIES)
    assert "".join("48"[j] for j in choice) == "8884888848884444444"  # as published
    assert free.loss <= tied.loss


@pytest.mark.parametrize("groups", [[[0, 5]], [[-1, 0]], [[0, 1], [1, 2]], [[0, 0]]])
def test_an_item_stands_in_one_group_at_most(groups: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="must be one of the 5 items and stand in one group only"):
        merge_tied(random_problem("wild", 0, 5, 2), groups)


def test_members_must_have_an_option_in_common() -> None:
    problem = make(np.zeros((3, 2)), np.zeros((3, 2), dtype=int), 0, allowed=[[True, False], [True, True], [False, True]])
    with pytest.raises(ValueError, match=r"tied items \[0, 2\] have no allowed option in common"):
        merge_tied(problem, [[0, 2]])


def test_weights_of_tied_members_add_up() -> None:
    rules = (
        Rule("weights", np.array([0, 1, 2, 2]), np.array([1, 1, 1, 0]), np.array([3, 4, 5, 7]), most=12),
        forbid((0, 1), (2, 1)),
        balance((1, 2, 3), up=(0,), down=(1,), name="even"),
    )
    merged, _ = merge_tied(replace(random_problem("wild", 0, 4, 3, holes=False), rules=rules), [[0, 2]])
    told = [sorted(zip(*(a.tolist() for a in (r.item, r.option, r.weight)), strict=True)) for r in merged.rules]
    assert told[0] == [(0, 0, 7), (0, 1, 8), (1, 1, 4)]
    assert told[1] == [(0, 1, 2)]  # 2 > 1: the tied items may not take option 1
    assert told[2] == [(0, 0, 1), (0, 1, -1), (1, 0, 1), (1, 1, -1), (2, 0, 1), (2, 1, -1)]
    assert [(rule.name, rule.least, rule.most) for rule in merged.rules] == [(rule.name, rule.least, rule.most) for rule in rules]


@pytest.mark.parametrize("seed", range(8))
def test_floors_and_rules_hold_after_the_merger(seed: int) -> None:
    """Every choice of the merged problem, against the choices of the first one in which the tied items agree."""
    rng = np.random.default_rng(seed)
    problem = make(rng.integers(0, 20, (5, 3)), rng.integers(0, 10, (5, 3)), 30)
    rules = (count(range(5), (0, 1), at_least=1, at_most=4), forbid((0, 2), (3, 1)), balance((1, 2, 4), up=(0,), down=(2,)))
    problem = replace(problem, floor=np.array([12]), rules=rules)
    merged, invert = merge_tied(problem, [[1, 3], [4, 0]])
    assert merged.floor.tolist() == [12]
    allowed = 0
    for picks in itertools.product(range(3), repeat=merged.items):
        choice = np.array(picks)
        assert merged.rows.totals(choice).tolist() == problem.rows.totals(invert(choice)).tolist()
        allowed += not merged.rows.broken(choice)
    assert allowed > 0
    tied = [np.array(c) for c in itertools.product(range(3), repeat=5) if c[1] == c[3] and c[0] == c[4]]
    least = min(recompute(problem, choice)[0] for choice in tied if not problem.rows.broken(choice))
    assert brute_force(merged).loss == least
    assert SOLVERS["best"](merged).loss == least
    assert math.isfinite(least)


def test_a_rule_that_tied_members_cannot_keep_leaves_no_choice() -> None:
    problem = replace(random_problem("wild", 0, 2, 2, holes=False), rules=(count((0, 1), (0,), exactly=1),))
    assert SOLVERS["best"](problem).status is not Status.INFEASIBLE
    merged, _ = merge_tied(problem, [[0, 1]])  # both or neither: never one
    assert SOLVERS["best"](merged).status is Status.INFEASIBLE
    apart = count((0, 1), (0,), at_most=1)
    pinned = replace(problem, allowed=np.array([[True, False], [True, True]]), rules=(apart,))
    with pytest.raises(ValueError, match="cannot be kept"):
        merge_tied(pinned, [[0, 1]])
