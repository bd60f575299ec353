from __future__ import annotations

import math

import numpy as np
import pytest

from bitplan.solvers.rate_distortion import RateDistortion, rate_distortion
from bitplan.solvers.water_filling import reverse_water_filling
from problems import Floats


def check(answer: RateDistortion, coefficient: Floats, slope: Floats, usage: Floats, budget: Floats) -> None:
    """What the answer says of itself, computed again from the programme."""
    assert answer.loss == pytest.approx(float((coefficient * 2.0 ** (-slope * answer.bits)).sum()), rel=1e-12)
    assert np.all(usage @ answer.bits <= budget * (1 + 1e-12))
    np.testing.assert_allclose(answer.spent, usage @ answer.bits, rtol=1e-12)
    assert np.all(answer.multipliers >= 0)


def dual(multipliers: Floats, coefficient: Floats, slope: Floats, usage: Floats, budget: Floats, cap: float) -> float:
    """The Lagrangian's least value over 0 <= b <= cap, found item by item on a fine grid and not in closed form."""
    grid = np.linspace(0, cap, 200_001)
    total = -float(multipliers @ budget)
    for c, s, price in zip(coefficient, slope, multipliers @ usage, strict=True):
        total += float((c * 2.0 ** (-s * grid) + price * grid).min())
    return total


@pytest.mark.parametrize("seed", range(6))
def test_several_resources_leave_no_gap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, r = 40, 1 + seed % 4
    coefficient, slope = rng.lognormal(0, 2, n), rng.uniform(1.5, 2.2, n)
    usage = rng.lognormal(0, 1, (r, n)) * (rng.random((r, n)) < 0.8)
    usage[0] += 0.1
    budget = usage.sum(axis=1) * rng.uniform(2, 4, r)
    answer = rate_distortion(coefficient, slope, usage, budget, cap=8.0)
    check(answer, coefficient, slope, usage, budget)
    assert np.all((answer.bits >= 0) & (answer.bits <= 8))
    assert 0 <= answer.gap + 1e-12 * answer.loss <= 1e-6 * answer.loss
    assert answer.lower_bound == pytest.approx(dual(answer.multipliers, coefficient, slope, usage, budget, 8.0), rel=1e-7)


def test_a_resource_that_does_not_bind_changes_nothing() -> None:
    """The second resource would bind at the caps, but not at the optimum: the answer is the closed form for the first."""
    rng = np.random.default_rng(3)
    coefficient, weights, other = rng.lognormal(0, 2, 30), rng.uniform(1, 3, 30), rng.uniform(1, 3, 30)
    alone = reverse_water_filling(coefficient, weights, 120.0, cap=8.0)
    budget = np.array([120.0, 1.02 * float(other @ alone.bits)])
    answer = rate_distortion(coefficient, 2.0, np.array([weights, other]), budget, cap=8.0)
    assert answer.outcome == "solved"
    assert answer.loss == pytest.approx(float(alone.losses.sum()), rel=1e-8)
    np.testing.assert_allclose(answer.bits, alone.bits, atol=1e-4)
    assert answer.multipliers[0] == pytest.approx(alone.price, rel=1e-4)
    assert answer.multipliers[1] < 1e-4 * alone.price


def test_units_and_ranges_do_not_matter() -> None:
    """Bytes and losses from 1e-9 to 1e9: the relative gap is the same as for numbers about one."""
    rng = np.random.default_rng(4)
    coefficient, usage = rng.lognormal(0, 2, 30), rng.uniform(1, 3, (2, 30))
    budget = usage.sum(axis=1) * np.array([2.5, 2.6])
    plain = rate_distortion(coefficient, 2.0, usage, budget)
    units = np.array([1e9, 1e-6])
    other = rate_distortion(coefficient * 1e-9, 2.0, usage * units[:, None], budget * units)
    np.testing.assert_allclose(other.bits, plain.bits, atol=1e-3)
    assert other.loss == pytest.approx(plain.loss * 1e-9, rel=1e-7)
    assert other.gap <= 1e-7 * other.loss
    np.testing.assert_allclose(other.multipliers * units * 1e9, plain.multipliers, rtol=1e-4, atol=1e-9)


def test_no_time_still_gives_bits_and_a_true_bound() -> None:
    rng = np.random.default_rng(5)
    coefficient, slope, usage = rng.lognormal(0, 2, 30), np.full(30, 2.0), rng.uniform(1, 3, (2, 30))
    budget = usage.sum(axis=1) * 3
    hasty = rate_distortion(coefficient, slope, usage, budget, time_limit=0.0)
    check(hasty, coefficient, slope, usage, budget)
    patient = rate_distortion(coefficient, slope, usage, budget)
    assert hasty.outcome == "stopped"
    assert hasty.lower_bound <= patient.loss <= hasty.loss


def test_room_for_nothing_and_for_everything() -> None:
    shut = rate_distortion([1.0, 2.0, 3.0], 2.0, [[1, 1, 0], [1, 1, 1]], [2.0, 5.0], floor=1.0)
    np.testing.assert_allclose(shut.bits, [1, 1, 3], atol=1e-9)
    assert shut.gap == pytest.approx(0, abs=1e-9)
    assert shut.multipliers[0] > 0
    free = rate_distortion([1.0, 2.0], 2.0, [[1, 1]], [100.0], cap=[3.0, 4.0])
    assert free.bits.tolist() == [3.0, 4.0]
    assert (free.gap, free.multipliers.tolist()) == (0.0, [0.0])
    unused = rate_distortion([1.0, 0.0, 2.0], 2.0, [[1, 1, 0]], [2.0], cap=[math.inf, math.inf, 5.0])
    np.testing.assert_allclose(unused.bits, [2, 0, 5], atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"usage": [[1.0, -1.0]]}, "usage must be finite"),
        ({"slope": [2.0, 0.0]}, "slope must be finite and > 0"),
        ({"coefficient": [-1.0, 1.0]}, "coefficient must be finite"),
        ({"usage": [[1.0]]}, "do not fit together"),
        ({"floor": 3.0, "cap": 2.0}, "no floor above its cap"),
        ({"floor": 4.0}, r"the floors alone use 2\.0 more of resource 0"),
        ({"usage": [[1.0, 0.0]]}, "item 1 uses no resource and has no cap"),
    ],
)
def test_numbers_that_make_no_sense(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"coefficient": [1.0, 2.0], "slope": 2.0, "usage": [[1.0, 1.0]], "budget": [6.0], **change}
    with pytest.raises(ValueError, match=message):
        rate_distortion(**given)  # type: ignore[arg-type]
