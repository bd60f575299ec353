from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from bitplan.solvers import ChoiceProblem, Rule, Status, balance, brute_force, count, dp, pairing
from problems import Ints, make

# methods_core.md, section 3.9: the saliences of eight groups, and the plans for p = 1, 2, 3 around 2 bits.
SALIENCE = [5, 40, 1, 7, 300, 12, 2, 60]
PLANS = {1: [2, 2, 1, 2, 3, 2, 2, 2], 2: [2, 2, 1, 2, 3, 2, 1, 3], 3: [1, 3, 1, 2, 3, 2, 1, 3]}


def balanced(
    loss: np.ndarray, *, up: Sequence[int], down: Sequence[int], cost: np.ndarray | None = None, limit: int = 0
) -> ChoiceProblem:
    costs = np.zeros(loss.shape, dtype=np.int64) if cost is None else cost
    rule = balance(range(len(loss)), up, down)
    return ChoiceProblem(loss, costs[None], np.array([limit]), np.ones(loss.shape, dtype=np.bool_), rules=(rule,))


def noting(plans: list[list[int]]) -> Callable[[Ints], float]:
    """An evaluation that keeps what it is given, and finds all plans alike."""

    def evaluate(plan: Ints) -> float:
        plans.append(plan.tolist())
        return 1.0

    return evaluate


def test_the_plans_of_the_worked_example() -> None:
    seen: list[list[int]] = []
    found = pairing.scan(SALIENCE, noting(seen))
    bits = [[2 + step for step in plan] for plan in seen]
    assert bits == [[2] * 8, PLANS[1], PLANS[2], PLANS[3], [1, 3, 1, 1, 3, 3, 1, 3]]
    assert found.counts.tolist() == [0, 1, 2, 3, 4]
    assert found.count == 0  # all errors are equal, and the first wins


def test_the_first_least_error_wins() -> None:
    errors = {0: 3.0, 1: 2.0, 2: 1.0, 3: 1.0, 4: 5.0}
    found = pairing.scan(SALIENCE, lambda plan: errors[int((plan > 0).sum())])
    assert (found.count, found.error, (2 + found.plan).tolist()) == (2, 1.0, PLANS[2])
    assert found.errors.tolist() == list(errors.values())


def test_the_published_counts() -> None:
    found = pairing.scan(SALIENCE, lambda plan: 0.0, include_zero=False, include_half=False)
    assert found.counts.tolist() == [1, 2, 3]
    assert pairing.scan([1.0] * 5, lambda plan: 0.0, include_zero=False, include_half=False).counts.tolist() == [1]
    with pytest.raises(ValueError, match="3 groups leave no plan"):
        pairing.scan([1, 2, 3], lambda plan: 0.0, include_zero=False, include_half=False)


def test_equal_groups_go_by_their_place_and_no_group_both_ways() -> None:
    plans: list[list[int]] = []
    pairing.scan([1.0] * 5, noting(plans))
    assert plans == [[0] * 5, [-1, 0, 0, 0, 1], [-1, -1, 0, 1, 1]]


def test_what_is_no_salience_or_error_is_refused() -> None:
    with pytest.raises(ValueError, match="list of finite numbers"):
        pairing.scan([1.0, np.nan], lambda plan: 0.0)
    with pytest.raises(ValueError, match="p = 2 is not a number"):
        pairing.scan(SALIENCE, lambda plan: np.nan if plan.clip(0).sum() == 2 else 1.0)


def test_never_worse_than_the_scan_over_the_same_errors() -> None:
    rng = np.random.default_rng(1)
    for groups in (2, 9, 40):
        loss = rng.random((groups, 1)) * 4.0 ** -np.arange(1, 4) * np.exp(rng.normal(0, 0.3, (groups, 3)))

        def error(plan: Ints, loss: np.ndarray = loss) -> float:
            return float(np.take_along_axis(loss, plan[:, None] + 1, axis=1).sum())

        found = pairing.scan(loss[:, 1], error)
        solution = pairing.solve(balanced(loss, up=[2], down=[0]))
        assert solution.choice is not None
        assert solution.loss <= found.error * (1 + 1e-12)
        assert (solution.choice == 2).sum() == (solution.choice == 0).sum()
        if groups == 40:
            assert solution.loss < found.error  # the family of one number is not all there is


def test_the_best_of_each_count_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raising item 2 gains 5, lowering item 0 loses 1: one pair; a second pair (gain 2, loss 3) does not pay."""
    monkeypatch.delattr(dp, "solve")
    loss = np.array([[11.0, 10.0, 9.5], [14.0, 10.0, 8.0], [19.0, 10.0, 5.0], [13.0, 10.0, 9.9]])
    solution = pairing.solve(balanced(loss, up=[2], down=[0]))
    assert solution.choice is not None
    assert (solution.choice.tolist(), solution.loss, solution.status) == ([0, 1, 2, 1], 36.0, Status.OPTIMAL)


@pytest.mark.parametrize("options", [2, 3, 5])
def test_agrees_with_every_choice_tried(options: int) -> None:
    """Random signs for the options, holes, items outside the rule, limits that bind, and odd numbers of forced ups."""
    rng = np.random.default_rng(options)
    statuses = set()
    for seed in range(15):
        items = 1 + seed % 6
        loss, cost = rng.integers(0, 30, (items, options)).astype(float), rng.integers(0, 9, (1, items, options))
        allowed = rng.random(loss.shape) > 0.25
        allowed[np.arange(items), rng.integers(0, options, items)] = True
        split = rng.permutation(options)
        rule = balance(rng.permutation(items)[: 1 + items * 3 // 4], split[: 1 + options // 3], split[1 + options // 3 :][:2])
        limit = np.array([int(rng.integers(cost.max(axis=2).sum() // 3, 1 + cost.max(axis=2).sum()))])
        signs = np.zeros(loss.shape, dtype=np.int64)
        signs[rule.item, rule.option] = rule.weight
        if np.where(allowed, signs, 1).min(axis=1).sum() > 0 or np.where(allowed, signs, -1).max(axis=1).sum() < 0:
            continue  # no problem at all: refused as a rule that cannot be kept
        problem = ChoiceProblem(loss, cost, limit, allowed, rules=(rule,))
        solution, best = pairing.solve(problem), brute_force(problem)
        statuses.add(solution.status)
        if best.choice is None:
            assert (solution.status, solution.choice) == (Status.INFEASIBLE, None)
            assert solution.smallest_limit == best.smallest_limit
        else:
            assert solution.choice is not None
            assert (solution.status, solution.loss) == (Status.OPTIMAL, best.loss)
            assert not problem.rows.broken(solution.choice)
            assert solution.certificate is not None
            assert solution.certificate.gap >= 0
    assert statuses == {Status.OPTIMAL, Status.INFEASIBLE}


def test_equal_steps_in_cost_keep_the_mean_and_the_limit_never_binds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(dp, "solve")  # only a limit that binds needs the lists
    rng = np.random.default_rng(7)
    loss = rng.random((300, 1)) * 4.0 ** -np.arange(1.0, 4.0) * np.exp(rng.normal(0, 0.2, (300, 3)))
    cost = np.tile([1, 2, 3], (300, 1))
    solution = pairing.solve(balanced(loss, up=[2], down=[0], cost=cost, limit=600))
    free = pairing.solve(balanced(loss, up=[2], down=[0]))
    assert solution.status is Status.OPTIMAL
    assert solution.cost.tolist() == [600]
    assert solution.loss == free.loss
    assert solution.certificate is not None
    assert solution.certificate.gap / solution.certificate.loss_scale < 1e-3 * solution.loss


def test_a_time_limit_of_nothing_moves_no_item() -> None:
    loss = np.random.default_rng(3).random((50, 3))
    solution = pairing.solve(balanced(loss, up=[2], down=[0]), time_limit=0.0)
    assert solution.choice is not None
    assert (set(solution.choice.tolist()), solution.status) == ({1}, Status.LIMIT)


def test_other_problems_are_refused() -> None:
    loss, cost, limit, allowed = np.ones((3, 3)), np.ones((1, 3, 3), dtype=int), np.array([9]), np.ones((3, 3), dtype=np.bool_)
    rule = balance(range(3), [2], [0])
    unequal = Rule("unequal", np.arange(3), np.array([0, 1, 2]), np.array([2, -1, -1]), 0, 0)
    for problem in (
        make(loss, cost, 9),
        ChoiceProblem(loss, cost, limit, allowed, rules=(rule, rule)),
        ChoiceProblem(loss, cost, limit, allowed, rules=(count(range(3), [1], at_most=2),)),
        ChoiceProblem(loss, cost, limit, allowed, rules=(unequal,)),
        ChoiceProblem(loss, cost, limit, allowed, np.array([1]), (rule,)),
        ChoiceProblem(loss, np.repeat(cost, 2, axis=0), np.repeat(limit, 2), allowed, rules=(rule,)),
    ):
        with pytest.raises(ValueError, match="use `best`"):
            pairing.solve(problem)
