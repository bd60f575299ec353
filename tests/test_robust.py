from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitplan.solvers import SOLVERS, certify, count
from bitplan.solvers.problem import ChoiceProblem
from bitplan.solvers.robust import monotone, pessimistic, probability_right
from problems import Floats, Ints, make, padded, random_problem

FREE = [Fraction(0)]


def one_resource(loss: Floats) -> ChoiceProblem:
    return make(loss, np.zeros(loss.shape, dtype=np.int64), 0)


# --- How sure a choice is.


def test_two_options_have_a_closed_form() -> None:
    """P = Phi((v_k - v_j) / sqrt(s_j^2 + s_k^2)), with errors from a hundred times smaller to larger than each other."""
    rng = np.random.default_rng(0)
    loss, stderr = rng.random((300, 2)), 10.0 ** rng.uniform(-3, 1, (300, 2))
    right = probability_right(one_resource(loss), stderr, np.zeros(300, dtype=np.int64), FREE)
    apart = (loss[:, 1] - loss[:, 0]) / np.hypot(stderr[:, 0], stderr[:, 1])
    np.testing.assert_allclose(right, [math.erfc(-x / math.sqrt(2)) / 2 for x in apart], atol=1e-13)


@pytest.mark.parametrize("exact", [0.0, 0.3])
def test_some_option_is_right(exact: float) -> None:
    """Over the options of an item the probabilities add up to one, also where some errors are zero (no two means tie)."""
    rng = np.random.default_rng(1)
    loss, stderr = rng.random((100, 6)) * 3, 10.0 ** rng.uniform(-3, 1, (100, 6))
    stderr[rng.random((100, 6)) < exact] = 0
    problem = one_resource(loss)
    total = sum(probability_right(problem, stderr, np.full(100, option), FREE) for option in range(6))
    np.testing.assert_allclose(total, 1.0, atol=1e-12)


def test_a_simulation_agrees() -> None:
    problem = random_problem("wild", 5, 12, 6)
    solution = SOLVERS["hull"](problem)
    assert solution.choice is not None
    assert solution.certificate is not None
    rng = np.random.default_rng(2)
    stderr = rng.uniform(0.05, 0.4, problem.loss.shape)
    right = probability_right(problem, stderr, solution.choice, solution.certificate.multipliers)
    price = float(solution.certificate.multipliers[0] / solution.certificate.loss_scale)
    draws = 40_000
    seen = problem.loss + stderr * rng.standard_normal((draws, *stderr.shape)) + price * problem.cost[0]
    seen[:, ~problem.allowed] = np.inf
    share = (seen.argmin(axis=2) == solution.choice).mean(axis=0)
    assert np.sum((right > 0.05) & (right < 0.95)) >= 6
    np.testing.assert_allclose(right, share, atol=4 * 0.5 / math.sqrt(draws))


def test_no_error_means_sure() -> None:
    problem = random_problem("wild", 3, 30, 5)
    solution = SOLVERS["hull"](problem)
    assert solution.certificate is not None
    prices, zero = solution.certificate.multipliers, np.zeros(problem.loss.shape)
    # What the multiplier prefers is right; what it does not is wrong.
    priced = problem.loss + float(prices[0] / solution.certificate.loss_scale) * problem.cost[0]
    priced[~problem.allowed] = np.inf
    best = priced.argmin(axis=1)
    assert probability_right(problem, zero, best, prices).tolist() == [1.0] * 30
    priced[np.arange(30), best] = np.inf
    second = np.where(problem.allowed.sum(axis=1) > 1, priced.argmin(axis=1), best)
    assert probability_right(problem, zero, second, prices).tolist() == (second == best).astype(float).tolist()


def test_ties_and_single_options_are_right() -> None:
    tied = one_resource(np.array([[1.0, 1.0, 2.0]]))
    assert probability_right(tied, np.zeros((1, 3)), np.array([1]), FREE).tolist() == [1.0]
    single = make([[1.0, 9.0]], [[0, 0]], 0, allowed=[[False, True]])
    assert probability_right(single, [[math.nan, 4.0]], np.array([1]), FREE).tolist() == [1.0]
    # Against one option known exactly: half the time when level with it.
    level = probability_right(tied, [[0.5, 0.0, 0.0]], np.array([0]), FREE)
    np.testing.assert_allclose(level, 0.5, atol=1e-13)


def test_prices_count_and_rules_have_prices() -> None:
    everything, rule = np.ones((1, 2), dtype=np.bool_), count([0], [1], at_most=1)
    problem = ChoiceProblem(np.array([[3.0, 1.0]]), np.array([[[0, 2]]]), np.array([2]), everything, rules=(rule,))
    scale = certify(problem, np.array([0]), [Fraction(0), Fraction(0)]).loss_scale
    stderr = np.full((1, 2), 0.5)
    for multipliers in ([Fraction(scale), Fraction(0)], [Fraction(0), Fraction(2 * scale)]):
        right = probability_right(problem, stderr, np.array([0]), multipliers)  # 3 against 1 + 2
        np.testing.assert_allclose(right, 0.5, atol=1e-13)
    with pytest.raises(ValueError, match="2 multipliers are needed"):
        probability_right(problem, stderr, np.array([0]), FREE)


def test_standard_errors_are_checked() -> None:
    problem = padded([[(0, 1.0), (1, 0.5)], [(0, 2.0)]], 1)
    choice = np.array([0, 0])
    with pytest.raises(ValueError, match="standard error of item 0, option 1 is -1"):
        probability_right(problem, [[0.0, -1.0], [0.0, -1.0]], choice, FREE)
    with pytest.raises(ValueError, match="the shape"):
        pessimistic(problem, [0.0, 1.0])
    with pytest.raises(ValueError, match="is inf; it must be finite"):
        pessimistic(problem, [[math.inf, 0.0], [0.0, 0.0]])
    with pytest.raises(ValueError, match="not allowed"):
        probability_right(problem, np.zeros((2, 2)), np.array([0, 1]), FREE)


# --- Caution.


def test_caution_prefers_what_is_known_well() -> None:
    problem = make([[1.0, 0.9]], [[0, 0]], 0)
    stderr = np.array([[0.01, 0.5]])
    bold, careful = SOLVERS["hull"](problem), SOLVERS["hull"](pessimistic(problem, stderr))
    assert bold.choice is not None
    assert careful.choice is not None
    assert (bold.choice.tolist(), careful.choice.tolist()) == ([1], [0])
    np.testing.assert_allclose(pessimistic(problem, stderr, quantile=0.975).loss, problem.loss + 1.959964 * stderr, rtol=1e-6)


def test_caution_keeps_everything_else() -> None:
    problem = make([[1.0, 2.0], [3.0, 4.0]], [[1, 2], [3, 4]], 9, allowed=[[True, False], [True, True]])
    ruled = ChoiceProblem(
        problem.loss, problem.cost, problem.limit, problem.allowed, np.array([2]), (count([0], [0], at_least=1),)
    )
    careful = pessimistic(ruled, np.where(problem.allowed, 1.0, math.nan), quantile=0.5)
    assert careful.loss.tolist() == ruled.loss.tolist()
    assert (careful.rules, careful.floor.tolist(), careful.limit.tolist()) == (ruled.rules, [2], [9])
    for quantile in (0.4, 1.0, math.nan):
        with pytest.raises(ValueError, match="quantile"):
            pessimistic(ruled, np.zeros((2, 2)), quantile=quantile)


# --- Tables that fall with cost.

entries = st.lists(st.tuples(st.floats(0, 10), st.integers(0, 4), st.booleans(), st.floats(0.01, 100)), min_size=1, max_size=8)


def keeps_order(loss: Floats, cost: Ints) -> bool:
    return all(loss[j] >= loss[k] for j in range(len(loss)) for k in range(len(loss)) if cost[j] < cost[k])


@given(entries)
def test_the_repair_is_the_nearest_table_without_rises(listed: list[tuple[float, int, bool, float]]) -> None:
    """The nearest point of a cone is the one whose residual is orthogonal to it and makes no acute angle with any edge.

    The edges of this cone: all ones and their negative, and ones for a set that has with each option all the cheaper ones.
    """
    loss, cost, mask, weight = (np.array([column]) for column in zip(*listed, strict=True))
    after, repair = monotone(loss, cost, mask, weight)
    keep = mask[0]
    assert keeps_order(after[0, keep], cost[0, keep])
    assert after[0, ~keep].tolist() == loss[0, ~keep].tolist()
    residual, spent = (weight * (loss - after))[0, keep], cost[0, keep]
    rounding = 1e-12 * float(weight.sum()) * float(loss.max() + 1)
    assert abs(residual.sum()) <= rounding
    assert abs(residual @ after[0, keep]) <= 10 * rounding
    for edge in spent.tolist():
        assert residual[spent < edge].sum() + np.maximum(0, residual[spent == edge]).sum() <= rounding
    again, nothing = monotone(after, cost, mask, weight)
    assert again.tolist() == after.tolist()
    assert len(nothing) == 0
    assert repair.items == bool(len(repair))
    unchanged = np.ones(loss.shape, dtype=np.bool_)
    unchanged[repair.item, repair.option] = False
    assert after[unchanged].tolist() == loss[unchanged].tolist()


def test_a_rise_is_pooled_and_told() -> None:
    loss = np.array([[5.0, 3.0, 4.0, 1.0], [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 9.0]])
    cost = np.tile([1, 2, 3, 4], (3, 1))
    allowed = np.array([[True] * 4, [True] * 4, [True, True, True, False]])
    after, repair = monotone(loss, cost, allowed)
    assert after.tolist() == [[5.0, 3.5, 3.5, 1.0], [4.0, 3.0, 2.0, 1.0], [2.0, 2.0, 2.0, 9.0]]
    changed = list(zip(repair.item, repair.option, repair.before, repair.after, strict=True))
    assert changed == [(0, 1, 3.0, 3.5), (0, 2, 4.0, 3.5), (2, 0, 1.0, 2.0), (2, 2, 3.0, 2.0)]
    assert (len(repair), repair.items) == (4, 2)
    assert loss[0, 1] == 3.0  # what is given stays as it is


def test_weights_say_who_yields() -> None:
    loss, cost, allowed = np.array([[1.0, 4.0]]), np.array([[1, 2]]), np.ones((1, 2), dtype=np.bool_)
    assert monotone(loss, cost, allowed, np.array([[1.0, 2.0]]))[0].tolist() == [[3.0, 3.0]]
    assert monotone(loss, cost, allowed, np.array([[1.0, math.inf]]))[0].tolist() == [[4.0, 4.0]]
    assert monotone(loss, cost, allowed, np.full((1, 2), math.inf))[0].tolist() == [[2.5, 2.5]]
    assert monotone(loss, cost, allowed, np.full((1, 2), 1e308))[0].tolist() == [[2.5, 2.5]]


def test_equal_costs_have_no_order() -> None:
    """Two quantizers of one size may differ; each must only lie between the cheaper and the dearer ones."""
    cost, allowed = np.array([[1, 2, 2, 3]]), np.ones((1, 4), dtype=np.bool_)
    assert not len(monotone([[9.0, 2.0, 5.0, 1.0]], cost, allowed)[1])
    assert monotone([[9.0, 2.0, 5.0, 3.0]], cost, allowed)[0].tolist() == [[9.0, 2.5, 5.0, 2.5]]
    assert monotone([[4.0, 2.0, 6.0, 1.0]], cost, allowed)[0].tolist() == [[5.0, 2.0, 5.0, 1.0]]


def test_order_within_a_row_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    loss, cost, allowed = rng.random((50, 7)), rng.integers(0, 5, (50, 7)), rng.random((50, 7)) > 0.2
    order = rng.permutation(7)
    straight, repair = monotone(loss, cost, allowed)
    other, _ = monotone(loss[:, order], cost[:, order], allowed[:, order])
    np.testing.assert_array_equal(other, straight[:, order])
    assert len(repair) > 50


def test_tables_that_do_not_fit() -> None:
    table, allowed = np.ones((2, 3)), np.ones((2, 3), dtype=np.bool_)
    for wrong in ((table, table[:, :2], allowed, None), (table, table, table, None), (table, table, allowed, table[:1])):
        with pytest.raises(ValueError, match="of one shape"):
            monotone(*wrong)
    with pytest.raises(ValueError, match="finite"):
        monotone(table * math.nan, table, allowed)
    with pytest.raises(ValueError, match="weights must be > 0"):
        monotone(table, table, allowed, table * 0)
    hidden = np.where([[True, False, False]] * 2, 1.0, math.nan)
    assert not len(monotone(hidden, table, ~np.isnan(hidden))[1])
