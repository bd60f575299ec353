"""Small worked examples that others published; `test_published.py` lists all of them and where each is tested."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from bitplan.solvers import SOLVERS, Status, brute_force, count, frontier, least_cost, pareto
from problems import (
    make,
    mixdq,
    outlier_scores,
    padded,
)

COUNTED = 1e-12  # relative: the rounding of a sum


# --- ShiftAddLLM (arXiv 2406.05981): two of twelve equal layers may have 3 bits, and the released rule gives them to those that
# score highest. As an integer programme: 2.2 bits a layer, and a layer's loss falls in proportion to its score.


@pytest.mark.parametrize("seed", range(4))
def test_ten_layers_at_two_bits_and_two_at_three(seed: int) -> None:
    score = np.random.default_rng(seed).permutation(np.arange(1.0, 13.0))
    problem = make(np.outer(score, [1, 1 / 4]), np.tile([20, 30], (12, 1)), 12 * 22)
    solution = SOLVERS["best"](problem)
    assert solution.choice is not None
    assert np.flatnonzero(solution.choice).tolist() == np.flatnonzero(score > 10).tolist()
    assert len(np.flatnonzero(solution.choice)) == 2


# --- QuantMoE-Bench: scores that find outliers. The plan is in KNOWN_RULED.


def test_outlier_scores_order_the_matrices() -> None:
    assert outlier_scores() == pytest.approx([1.0, 2.5, 1.6], rel=1e-15)


# --- MixDQ: the mean widths of its two groups, of which the one is rho times as large as the other.

GROUP_WIDTHS = [  # k, then mean widths of the groups quality and content, for rho = 1.5 around 5 bits
    (0.46, 7.39645, 3.40237),
    (0.76, 5.84112, 4.43925),
    (1.06, 4.82625, 5.11583),
    (1.36, 4.11184, 5.59211),
]


@pytest.mark.parametrize(("ratio", "quality", "content"), GROUP_WIDTHS)
def test_two_groups_around_one_mean_width(ratio: float, quality: float, content: float) -> None:
    """The band is too narrow for two layers a group; at most the mean, as the paper has it, both together keep the 5 bits."""
    k, rho, mean = Fraction(str(ratio)), Fraction(3, 2), Fraction(5)
    widths = {"quality": mean * (1 + rho) / (k * rho + 1)}
    widths["content"] = k * widths["quality"]
    assert [float(widths[group]) for group in ("quality", "content")] == pytest.approx([quality, content], abs=5e-6)
    spent = 0
    for group, width in widths.items():
        refused = SOLVERS["best"](mixdq(group, width))
        assert (refused.status, refused.choice) == (Status.INFEASIBLE, None)
        problem = mixdq(group, width, band=False)
        solution = SOLVERS["best"](problem)
        assert solution.status is Status.OPTIMAL
        assert solution.loss == pytest.approx(brute_force(problem).loss, rel=COUNTED)
        spent += int(solution.cost[0])
    assert spent <= 100 * mean * (30 + 20)


# --- BitStack: blocks are loaded level by level, and within a level by what they improve. Written as losses whose slopes fall
# in that order, the path is the lower hull of all choices.


def test_the_path_of_the_level_order() -> None:
    size, perplexity = {"A": 4, "B": 2}, [{"A": 9.0, "B": 8.5}, {"A": 7.0, "B": 7.5}]
    order = [layer for level in perplexity for layer in sorted(level, key=level.__getitem__)]
    assert order == ["B", "A", "A", "B"]
    loss = {layer: [float(sum(gains[after:])) for after in range(3)] for layer, gains in _gains(order, size).items()}
    problem = padded([[(size[layer] * (1 + level), loss[layer][level]) for level in range(3)] for layer in "AB"], 0)
    path = frontier(problem)
    assert (path.budgets + 100).tolist() == [106, 108, 112, 116, 118]
    blocks = [(path.choice(vertex) + 1).tolist() for vertex in range(5)]
    assert blocks == [[1, 1], [1, 2], [2, 2], [3, 2], [3, 3]]
    assert (path.choice(path.lookup(113 - 100)) + 1).tolist() == [2, 2]


def _gains(order: list[str], size: dict[str, int]) -> dict[str, list[int]]:
    """What each step of a layer takes off its loss: its size times a slope that falls along the order."""
    gains: dict[str, list[int]] = {layer: [] for layer in size}
    for place, layer in enumerate(order):
        gains[layer].append(size[layer] * (len(order) - place))
    return gains


# --- LUQ: the layers of least entropy get 1.08 bits, the others 4, as many as a mean width or a benchmark asks.


@pytest.mark.parametrize(("layers", "mean", "low", "exact"), [(32, "2.54", 16, "2.54"), (28, "2.75", 12, "2.7486")])
def test_published_means_say_how_many_layers_are_low(layers: int, mean: str, low: int, exact: str) -> None:
    entropy = np.random.default_rng(layers).permutation(layers) + 1.0
    problem = make(np.outer(entropy, [1, 0]), np.tile([108, 400], (layers, 1)), int(layers * 100 * Fraction(mean)))
    solution = SOLVERS["best"](problem)
    assert solution.choice is not None
    assert np.flatnonzero(solution.choice == 0).tolist() == np.flatnonzero(entropy <= low).tolist()
    assert solution.cost[0] / (100 * layers) == pytest.approx(float(exact), abs=5e-5)


def test_the_layers_of_least_entropy_come_first() -> None:
    tokens = np.array([[25, 25, 25, 25], [70, 10, 10, 10], [97, 1, 1, 1]]) / 100
    entropy = -(tokens * np.log2(tokens)).sum(axis=1)
    assert entropy == pytest.approx([2.0, 1.35678, 0.24194], abs=5e-6)
    problem = make(np.outer(entropy, [1, 0]), [[108, 400]] * 3, 1200)
    prefixes = [replace(problem, rules=(count(range(3), [0], exactly=low),)) for low in range(4)]
    for low, prefix in enumerate(prefixes):
        solution = SOLVERS["best"](prefix)
        assert solution.choice is not None
        assert sorted(np.flatnonzero(solution.choice == 0).tolist(), reverse=True) == [2, 1, 0][:low]


def test_a_threshold_that_a_longer_prefix_meets_again() -> None:
    """Quality 0.90, 0.70, 0.86, 0.60 for 0 to 3 low layers: bisection stops at none, and two of them reach 0.80."""
    quality, layers = [0.90, 0.70, 0.86, 0.60], 3
    problem = make([[1 - reached for reached in quality]], [[108 * low + 400 * (layers - low) for low in range(4)]], 1200)
    found = least_cost(problem, 1 - 0.80)
    assert found.choice is not None
    assert found.choice.tolist() == [2]
    assert found.status is Status.OPTIMAL
    passed, failed = 0, layers
    while failed - passed > 1:
        middle = (passed + failed) // 2
        passed, failed = (middle, failed) if quality[middle] >= 0.80 else (passed, middle)
    assert passed == 0
    assert found.cost < problem.cost[0, 0, passed]


# --- KVTuner: bits of keys and values, by pairs.

PAIRS = {
    (8, 8): 0.010, (8, 4): 0.030, (4, 8): 0.200, (4, 4): 0.210, (8, 2): 0.120, (2, 8): 0.900, (4, 2): 0.260, (2, 4): 0.910,
    (2, 2): 0.950,
}  # fmt: skip


def test_pairs_of_widths_that_survive() -> None:
    names, errors = list(PAIRS), list(PAIRS.values())
    front = pareto(make([errors], [[key + value for key, value in names]], 0))
    kept = [names[int(front.choice(point)[0])] for point in range(len(front.budgets))]
    assert kept[::-1] == [(8, 8), (8, 4), (8, 2), (4, 4), (4, 2), (2, 2)]
    assert (front.budgets / 2).tolist() == [2, 3, 4, 5, 6, 8]
    assert front.losses.tolist() == pytest.approx([PAIRS[pair] for pair in kept], rel=1e-15)


def test_the_counts_of_a_preset_make_its_mean_width() -> None:
    """LLaMA-3.1-8B at 3.25 bits: which layers get which pair is an assignment problem, whatever the errors are."""
    from scipy.optimize import linear_sum_assignment

    preset = {(4, 2): 20, (4, 4): 6, (2, 2): 4, (8, 4): 2}
    error = np.random.default_rng(0).random((32, 4))
    spent = np.array([key + value for key, value in preset])
    rules = tuple(count(range(32), [option], exactly=many) for option, many in enumerate(preset.values()))
    problem = replace(make(error, np.tile(spent, (32, 1)), 32 * 16), rules=rules)
    slots = np.repeat(error, list(preset.values()), axis=1)
    rows, columns = linear_sum_assignment(slots)
    solution = SOLVERS["best"](problem)
    assert solution.status is Status.OPTIMAL
    assert solution.choice is not None
    assert solution.loss == pytest.approx(float(slots[rows, columns].sum()), rel=COUNTED)
    assert solution.cost[0] / 64 == 3.25
    bits = np.array(list(preset))[solution.choice]
    assert bits.mean(axis=0).tolist() == [4.0, 2.5]
