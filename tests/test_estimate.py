from __future__ import annotations

import numpy as np
import pytest

from bitplan.kernels.formats import FORMATS
from bitplan.sensitivity.estimate import empty_table, measured_pairs, ratio_estimate
from bitplan.sensitivity.units import Matrix, Unit


def unit(native: str) -> Unit:
    return Unit(f"u-{native}", "linear", "q", (Matrix("u", (4, 4)),), native)


def test_the_loss_is_all_sums_over_all_counts() -> None:
    """Not the mean of the batches' means: a batch of three counts three times as much as a batch of one."""
    found = ratio_estimate([np.array([[1.0, 0.0]]), np.array([[9.0, 0.0]])], [1, 3], "nats per token")
    assert found.loss.tolist() == [[2.5, 0.0]]
    assert (found.batches, found.quantity) == (2, "nats per token")
    assert found.stderr is not None
    # residuals: 1 - 2.5 * 1 and 9 - 2.5 * 3, each 1.5 squared; 2 / 1 * 4.5 / 16
    assert found.stderr.tolist() == [[0.75, 0.0]]


def test_equal_batches_have_the_standard_error_of_a_mean() -> None:
    sums = np.random.default_rng(0).gamma(2, 1, (9, 2, 3))
    found = ratio_estimate(list(sums), [1] * 9, "")
    assert found.loss == pytest.approx(sums.mean(0), rel=1e-12)
    assert found.stderr == pytest.approx(sums.std(0, ddof=1) / 3, rel=1e-12)


def test_the_standard_error_is_that_of_resampled_batches() -> None:
    """The bootstrap over batches of unequal size: its spread is sqrt((B - 1) / B) of ours, to the 3 % that 4000 draws allow
    (1.1 %) and the second order of a ratio over 60 batches."""
    rng = np.random.default_rng(1)
    counts = rng.integers(50, 150, 60)
    sums = counts[:, None, None] * rng.gamma(3, 1, (60, 1, 1))
    found = ratio_estimate(list(sums), counts.tolist(), "")
    drawn = rng.integers(0, 60, (4000, 60))
    ratios = sums[drawn, 0, 0].sum(1) / counts[drawn].sum(1)
    assert found.stderr is not None
    assert found.stderr[0, 0] == pytest.approx(ratios.std() * (60 / 59) ** 0.5, rel=0.03)


def test_one_batch_has_no_standard_error() -> None:
    found = ratio_estimate([np.array([[4.0]])], [2], "")
    assert found.loss.tolist() == [[2.0]]
    assert found.stderr is None


def test_what_is_not_admitted_stays_absent() -> None:
    """NaN in a sum is a format that the unit does not admit: it stays NaN and touches nothing else."""
    table = empty_table([unit("bf16"), unit("fp32")], ("int4-row", "bf16", "fp16", "fp32"))
    assert np.isnan(table).tolist() == [[False, False, True, True], [False] * 4]
    found = ratio_estimate([table + 1, table + 2], [1, 1], "")
    assert found.stderr is not None
    assert np.array_equal(np.isnan(found.loss), np.isnan(table))
    assert np.array_equal(np.isnan(found.stderr), np.isnan(table))


def test_its_own_format_is_not_measured() -> None:
    formats = ("int4-row", "bf16", "fp16", "fp32")
    assert measured_pairs(unit("bf16"), formats) == [(0, "int4-row")]
    assert measured_pairs(unit("fp32"), formats) == [(0, "int4-row"), (1, "bf16"), (2, "fp16")]
    assert len(measured_pairs(unit("fp16"), tuple(FORMATS))) == len([f for f in FORMATS.values() if f.family == "int"])
