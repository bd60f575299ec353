from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitplan.solvers.water_filling import WaterFilling, baq_levels, bits_for_loss, reverse_water_filling, round_to_budget
from problems import Floats

# --- Worked examples: BAQ (arXiv 2506.05664) and the textbook of independent Gaussian sources.


def test_equal_losses_at_the_optimum() -> None:
    """BAQ: losses measured at 3 bits, so C = loss 4^3; the geometric mean over the arithmetic one is the gain."""
    measured = np.array([16, 4, 1, 0.25])
    filling = reverse_water_filling(measured * 4**3, np.ones(4), 12.0)
    np.testing.assert_allclose(filling.bits, [4.5, 3.5, 2.5, 1.5], rtol=1e-15)
    np.testing.assert_allclose(filling.losses, 2.0, rtol=1e-14)
    assert filling.losses.sum() / measured.sum() == pytest.approx(0.376471, abs=5e-7)


def test_floors_hold_and_losses_are_equal_above_them_only() -> None:
    coefficient = np.array([1024, 16, 1, 1 / 64]) * 4
    free = reverse_water_filling(coefficient, np.ones(4), 4.0, floor=-math.inf)
    np.testing.assert_allclose(free.bits, [5, 2, 0, -3], atol=1e-14)
    filling = reverse_water_filling(coefficient, np.ones(4), 4.0)
    np.testing.assert_allclose(filling.bits, [3.5, 0.5, 0, 0], atol=1e-14)
    np.testing.assert_allclose(filling.losses, [32, 32, 4, 0.0625], rtol=1e-14)


def test_weights_share_the_loss_per_weight() -> None:
    weights = np.array([1, 2, 1])
    filling = reverse_water_filling([4, 1, 8], weights, 8.0)
    np.testing.assert_allclose(filling.bits, [2.625, 1.125, 3.125], rtol=1e-14)
    np.testing.assert_allclose(filling.losses / weights, 0.105112, atol=5e-7)
    assert filling.level == pytest.approx(0.105112, abs=5e-7)


@pytest.mark.parametrize(
    ("total", "level", "bits"), [(0.9, 0.325, [1.810744, 0.810744, 0]), (1.05, 0.4, [1.660964, 0.660964, 0])]
)
def test_gaussian_sources_within_a_total_distortion(total: float, level: float, bits: list[float]) -> None:
    filling = bits_for_loss([4, 1, 0.25], total)
    assert filling.level == pytest.approx(level, rel=1e-14)
    np.testing.assert_allclose(filling.bits, bits, atol=5e-7)
    np.testing.assert_allclose(filling.losses, [level, level, 0.25], rtol=1e-14)


def test_the_released_rule_of_baq_overshoots_its_budget() -> None:
    levels = baq_levels([16, 4, 1, 0.25], 3)
    assert levels.levels.tolist() == [23, 11, 6, 3]
    np.testing.assert_allclose(levels.bits, [4.523562, 3.459432, 2.584963, 1.584963], atol=5e-7)
    assert levels.bits.mean() == pytest.approx(3.038230, abs=5e-7)


def test_a_column_that_loses_nothing_gets_one_level() -> None:
    assert baq_levels([0.0, 1.0, 1.0], 2).levels[0] == 1
    assert baq_levels([1.0, 1.0], 2).levels.tolist() == [4, 4]
    for losses in ([-1.0], [math.nan], [], [[1.0]]):
        with pytest.raises(ValueError, match="losses"):
            baq_levels(losses, 3)


@pytest.mark.shared
@pytest.mark.parametrize("mean_bits", [3.0, 4.5])
def test_llama_at_any_budget_loses_the_same_share(shared: Path, mean_bits: float) -> None:
    """Q-Palette's released coefficients of LLaMA-3.1-8B: 224 matrices (arXiv 2509.20214, Theorem 3.1)."""
    released = json.loads((shared / "allocations" / "q_palette_llama31_8b.json").read_text())["loss_coefficient"]
    shapes = {"q": 4096 * 4096, "k": 1024 * 4096, "v": 1024 * 4096, "o": 4096 * 4096}
    names = [name for name in released if name != "constant"]
    sizes = [shapes.get(name.split(".")[1][0] if "attn" in name else "", 4096 * 14336) for name in names]
    coefficient, weights = np.array([released[name] for name in names]), np.array(sizes)
    assert coefficient.sum() == pytest.approx(8.19205, abs=5e-6)
    filling = reverse_water_filling(coefficient, weights, mean_bits * weights.sum())
    assert filling.losses.sum() / (coefficient.sum() * 4.0**-mean_bits) == pytest.approx(0.555977, abs=5e-7)
    least, most = int(filling.bits.argmin()), int(filling.bits.argmax())
    assert (names[least], names[most]) == ("0_self_attn.q_proj", "1_mlp.down_proj")
    np.testing.assert_allclose(filling.bits[[least, most]] - mean_bits, [0.868 - 3, 5.887 - 3], atol=5e-4)


# --- What makes bits optimal, whatever made them.

numbers = st.floats(1e-6, 1e6)
items = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), numbers), st.floats(1e-3, 1e3), st.floats(0, 3), st.one_of(st.floats(0, 6), st.just(math.inf))
    ),
    min_size=1,
    max_size=12,
)
Given = list[tuple[float, float, float, float]]


def arrays(given: Given) -> tuple[Floats, Floats, Floats, Floats]:
    coefficient, weights, floor, width = (np.array(column) for column in zip(*given, strict=True))
    return coefficient, weights, floor, floor + width


def kuhn_tucker(filling: WaterFilling, given: Given) -> None:
    coefficient, weights, floor, cap = arrays(given)
    assert np.all(filling.bits >= floor)
    assert np.all(filling.bits <= cap)
    np.testing.assert_allclose(filling.losses, coefficient * 2.0 ** (-filling.slope * filling.bits), rtol=1e-12)
    per_weight = filling.losses / weights
    above, below = filling.bits > floor, filling.bits < cap
    assert np.all(per_weight[below] <= filling.level * (1 + 1e-9))
    assert np.all(per_weight[above] >= filling.level * (1 - 1e-9))


@given(items, st.floats(0, 1.2), st.sampled_from([1.0, 1.95, 2.0]))
def test_water_filling_keeps_the_conditions_of_the_optimum(given: Given, share: float, slope: float) -> None:
    coefficient, weights, floor, cap = arrays(given)
    least = float(weights @ floor)
    budget = least + share * float(weights @ np.where(np.isinf(cap), 8, cap - floor))
    filling = reverse_water_filling(coefficient, weights, budget, slope=slope, floor=floor, cap=cap)
    kuhn_tucker(filling, given)
    spent = float(weights @ filling.bits)
    most = weights @ np.where(coefficient > 0, cap, floor)
    if spent < most * (1 - 1e-12):
        assert spent == pytest.approx(budget, rel=1e-11)
    elif budget > most * (1 + 1e-12):
        assert filling.level == 0
        np.testing.assert_array_equal(filling.bits, np.where(coefficient > 0, cap, floor))


@given(items, st.floats(1e-3, 1.1), st.sampled_from([1.0, 1.95, 2.0]))
def test_bits_for_a_loss_keep_the_conditions_of_the_optimum(given: Given, share: float, slope: float) -> None:
    coefficient, weights, floor, cap = arrays(given)
    most, least = (float((coefficient * 2.0 ** (-slope * bits)).sum()) for bits in (floor, cap))
    total = least + share * (most - least)
    if most == least:
        return
    filling = bits_for_loss(coefficient, total, weights=weights, slope=slope, floor=floor, cap=cap)
    kuhn_tucker(filling, given)
    if math.isfinite(filling.level):
        assert float(filling.losses.sum()) == pytest.approx(total, rel=1e-11)
    else:
        np.testing.assert_array_equal(filling.bits, floor)


@given(items, st.floats(0.05, 0.9))
def test_the_two_forms_answer_each_other(given: Given, share: float) -> None:
    coefficient, weights, floor, cap = arrays(given)
    budget = float(weights @ (floor + share * np.where(np.isinf(cap), 8, cap - floor)))
    there = reverse_water_filling(coefficient, weights, budget, floor=floor, cap=cap)
    felt = there.losses > 1e-6 * there.losses.sum()  # what the others get is lost in the rounding of the total
    if not np.any(felt & (there.bits > floor + 1e-6) & (there.bits < cap - 1e-6)):
        return
    back = bits_for_loss(coefficient, float(there.losses.sum()), weights=weights, floor=floor, cap=cap)
    np.testing.assert_allclose(back.bits[felt], there.bits[felt], atol=1e-6)


def test_the_price_is_what_the_next_unit_of_budget_saves() -> None:
    rng = np.random.default_rng(0)
    coefficient, weights = rng.random(20), rng.uniform(1, 9, 20)
    losses = [reverse_water_filling(coefficient, weights, 200 + step).losses.sum() for step in (-1e-4, 1e-4)]
    price = reverse_water_filling(coefficient, weights, 200.0).price
    assert (losses[0] - losses[1]) / 2e-4 == pytest.approx(price, rel=1e-7)


def test_a_slope_of_its_own_for_each_item() -> None:
    """By the change of variables that the module names; the optimum is where a bit's price is the same for all."""
    coefficient, weights, slope = np.array([3.0, 1.0, 0.2]), np.array([1.0, 2.0, 1.0]), np.array([2.0, 1.5, 1.8])
    filling = reverse_water_filling(coefficient, weights / slope, 9.0, slope=1.0)
    bits = filling.bits / slope
    assert weights @ bits == pytest.approx(9.0, rel=1e-14)
    saved = math.log(2) * slope * coefficient * 2.0 ** (-slope * bits) / weights
    np.testing.assert_allclose(saved, filling.price, rtol=1e-12)


def test_order_and_scale_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    coefficient, weights, order = rng.random(50), rng.random(50), rng.permutation(50)
    one = reverse_water_filling(coefficient, weights, 30.0)
    other = reverse_water_filling(coefficient[order], weights[order], 30.0)
    np.testing.assert_array_equal(one.bits[order], other.bits)
    scaled_up = reverse_water_filling(coefficient * 2.0**40, weights, 30.0)
    np.testing.assert_allclose(scaled_up.bits, one.bits, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coefficient": [1.0, -1.0]}, "coefficient"),
        ({"coefficient": [[1.0]]}, "coefficient"),
        ({"coefficient": [1.0, math.inf]}, "coefficient"),
        ({"weights": [1.0, 0.0]}, "weights"),
        ({"slope": 0.0}, "slope"),
        ({"floor": [0.0, 3.0], "cap": 2.0}, "floor of item 1"),
        ({"floor": math.nan}, "floor of item 0"),
        ({"coefficient": [0.0, 1.0], "floor": -math.inf}, "finite floor"),
        ({"floor": 4.0}, r"the floors alone cost 8\.0, more than the budget of 6\.0"),
    ],
)
def test_numbers_that_make_no_sense(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"coefficient": [1.0, 2.0], "weights": [1.0, 1.0], "budget": 6.0, **change}
    with pytest.raises(ValueError, match=message):
        reverse_water_filling(**given)  # type: ignore[arg-type]


def test_a_loss_that_no_bits_reach() -> None:
    with pytest.raises(ValueError, match=r"lose more than 0\.0, and a total of 0"):
        bits_for_loss([1.0, 2.0], 0.0)
    with pytest.raises(ValueError, match=r"lose more than 0\.75"):
        bits_for_loss([1.0, 2.0], 0.7, cap=1.0)
    np.testing.assert_array_equal(bits_for_loss([1.0, 2.0], 0.75, cap=1.0).bits, [1, 1])


# --- Whole bits.


@given(
    st.lists(numbers, min_size=1, max_size=5),
    st.integers(0, 20),
    st.integers(0, 1),
    st.integers(2, 4),
    st.sampled_from([1.0, 1.95, 2.0]),
)
def test_whole_bits_of_equal_weights_are_optimal(
    coefficient: list[float], budget: int, low: int, high: int, slope: float
) -> None:
    budget = max(budget, low * len(coefficient))
    bits = round_to_budget(coefficient, np.ones(len(coefficient)), budget, slope=slope, floor=low, cap=high)
    assert bits.sum() == min(budget, high * len(coefficient))
    assert bits.min() >= low
    assert bits.max() <= high
    best = min(
        math.fsum(c * 2.0 ** (-slope * b) for c, b in zip(coefficient, pick, strict=True))
        for pick in itertools.product(range(low, high + 1), repeat=len(coefficient))
        if sum(pick) <= budget
    )
    assert math.fsum((np.array(coefficient) * 2.0 ** (-slope * bits)).tolist()) <= best * (1 + 1e-12)


@given(items, st.floats(0, 1))
def test_whole_bits_never_exceed_the_budget_and_leave_no_room(given: Given, share: float) -> None:
    coefficient, weights, floor, cap = arrays(given)
    weights, floor, cap = np.ceil(weights), np.floor(floor), np.ceil(cap)
    budget = int(weights @ (floor + np.floor(share * np.where(np.isinf(cap), 9, cap - floor))))
    bits = round_to_budget(coefficient, weights, budget, floor=floor, cap=cap)
    left = budget - int(weights @ bits)
    assert left >= 0
    assert np.all(bits >= floor)
    assert np.all(bits <= cap)
    assert np.all((weights > left) | (bits == cap) | (coefficient * 4.0**-bits == 0))


def test_baq_in_whole_bits() -> None:
    """Columns 16, 4, 1, 1/4 at a mean of 3 bits: the real-valued 4.5, 3.5, 2.5, 1.5 become a total loss of 10."""
    measured = np.array([16, 4, 1, 0.25])
    bits = round_to_budget(measured * 4**3, np.ones(4), 12)
    assert bits.sum() == 12
    assert float((measured * 4.0 ** (3 - bits)).sum()) == 10.0
    with pytest.raises(ValueError, match="whole bits need a cap of whole numbers"):
        round_to_budget([1.0], [1.0], 3, cap=2.5)
    with pytest.raises(ValueError, match="the floors alone cost"):
        round_to_budget([1.0], [1.0], 3, floor=4)
