"""The rules of relevance propagation: published worked examples to their digits, explicit formulas, and conservation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from bitplan.sensitivity.lrp_rules import (
    Account,
    Rule,
    bounded_contributions,
    divide,
    identity_share,
    positive_contributions,
    product_shares,
    reduction_share,
    sum_shares,
)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_linear_worked_example() -> None:
    x, weight = torch.tensor([1.0, -2, 3]), torch.tensor([[1, 0.5, -1], [2, -1, 1]])
    (r,) = positive_contributions(functional.linear, x, weight, torch.tensor([0.4, 0.6]), Account())
    assert r.tolist() == pytest.approx([0.571429, 0.171429, 0.257143], abs=5e-7)
    assert float(r.sum()) == pytest.approx(1, abs=1e-7)


def test_sum_worked_example() -> None:
    a, b = torch.tensor([1.0, 2]), torch.tensor([3.0, -1])
    for_a, for_b = sum_shares(a, b, torch.tensor([0.5, 0.5]), 1)
    assert for_a.tolist() == pytest.approx([0.1, 0.8], abs=1e-12)
    assert for_b.tolist() == pytest.approx([-0.3, 0.4], abs=1e-12)


def test_matmul_worked_example() -> None:
    a, v = torch.tensor([[0.7, 0.3], [0.4, 0.6]]), torch.tensor([[1.0, 2], [3, 1]])
    for_a, for_v = product_shares(torch.matmul, a, v, torch.tensor([[0.1, 0.2], [0.3, 0.4]]), Account())
    assert for_a.flatten().tolist() == pytest.approx([0.104228, 0.045772, 0.141558, 0.208442], abs=5e-7)
    assert for_v.flatten().tolist() == pytest.approx([0.049148, 0.196639, 0.150852, 0.103361], abs=5e-7)
    assert float(for_a.sum() + for_v.sum()) == pytest.approx(1, abs=1e-7)


def test_linear_entry_by_entry() -> None:
    x, weight, r = drawn(3, 5), drawn(4, 5, seed=1), drawn(3, 4, seed=2)
    expected = torch.zeros_like(x)
    for row in range(3):
        for out in range(4):
            gains = (x[row] * weight[out]).clamp(min=0)
            expected[row] += r[row, out] * gains / gains.sum()
    (found,) = positive_contributions(functional.linear, x, weight, r, Account())
    assert torch.allclose(found, expected)


def test_a_convolution_is_the_linear_layer_of_its_patches() -> None:
    x, weight, r = drawn(2, 4, 6, 6), drawn(6, 2, 3, 3, seed=1), drawn(2, 6, 3, 3, seed=2)

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(x, weight, None, 2, 1, 1, 2)

    (found,) = positive_contributions(convolve, x, weight, r, Account())
    expected = torch.zeros_like(x)
    for group in range(2):
        channels = slice(2 * group, 2 * group + 2)
        patches = functional.unfold(x[:, channels], 3, padding=1, stride=2).transpose(1, 2)
        outs = slice(3 * group, 3 * group + 3)
        (rows,) = positive_contributions(
            functional.linear, patches, weight[outs].flatten(1), r[:, outs].flatten(2).transpose(1, 2), Account()
        )
        expected[:, channels] = functional.fold(rows.transpose(1, 2), (6, 6), 3, padding=1, stride=2)
    assert torch.allclose(found, expected)


def test_pixels_share_by_their_distance_from_the_bounds() -> None:
    """z^B, summed by hand over one patch as large as the image."""
    x, weight, r = drawn(1, 3, 2, 2), drawn(2, 3, 2, 2, seed=1), torch.tensor([0.25, 0.75], dtype=torch.float64)
    (found,) = bounded_contributions(functional.conv2d, x, weight, r.view(1, 2, 1, 1), Account())
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    parts = x * weight - low * weight.clamp(min=0) - high * weight.clamp(max=0)  # (out, 3, 2, 2), none negative
    assert bool((parts >= 0).all())
    expected = (parts / parts.sum((1, 2, 3), keepdim=True) * r.view(2, 1, 1, 1)).sum(0)
    assert torch.allclose(found[0], expected)
    assert float(found.sum()) == pytest.approx(1)


def test_the_terms_of_a_mean_share_in_proportion() -> None:
    x = torch.tensor([[[1.0, -2.0], [3.0, -6.0]]])
    (found,) = reduction_share(lambda x: x.mean(1), x, torch.tensor([[0.4, 0.6]]), Account())
    assert torch.allclose(found, torch.tensor([[[0.1, 0.15], [0.3, 0.45]]], dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_every_rule_conserves(seed: int) -> None:
    a, b, r = drawn(2, 5, 4, seed=seed), drawn(2, 5, 4, seed=seed + 10), drawn(2, 5, 4, seed=seed + 20)
    weight, square = drawn(4, 4, seed=seed + 30), drawn(2, 5, 5, seed=seed + 40)
    account = Account()
    assert float(positive_contributions(functional.linear, a, weight, r, account)[0].sum()) == pytest.approx(float(r.sum()))
    for_square, for_a = product_shares(torch.matmul, square, a, r, account)
    assert float(for_square.sum()) == pytest.approx(float(r.sum()) / 2)
    assert float(for_a.sum()) == pytest.approx(float(r.sum()) / 2)
    for_a, for_b = sum_shares(a, b, r, 2)
    assert (for_a + for_b).sum((1, 2)).tolist() == pytest.approx(r.sum((1, 2)).tolist())  # by example


def test_the_sums_of_two_terms_are_in_the_ratio_of_their_raw_sizes() -> None:
    a, b, r = drawn(1, 6), drawn(1, 6, seed=1), drawn(1, 6, seed=2).abs()
    for_a, for_b = sum_shares(a, b, r, 1)
    raw_a, raw_b = float((a * r / (a + b)).sum()), float((b * r / (a + b)).sum())
    assert float(for_a.sum() / for_b.sum()) == pytest.approx(abs(raw_a) / abs(raw_b))
    assert float(for_a.sum()) > 0
    assert float(for_b.sum()) > 0


def test_terms_that_cancel_share_alike() -> None:
    a = torch.tensor([[1.0, -2.0]])
    for_a, for_b = sum_shares(a, -a, torch.tensor([[0.25, 0.75]]), 1)
    assert torch.equal(for_a, for_b)
    assert for_a.tolist() == [[0.125, 0.375]]


def test_what_nothing_contributes_to_is_spread_by_the_weights() -> None:
    """Of two outputs the second has only negative contributions: the code that the rules come from drops its relevance."""
    x, weight = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 1.0], [-1.0, -3.0]])
    account = Account()
    (found,) = positive_contributions(functional.linear, x, weight, torch.tensor([0.3, 0.4]), account)
    assert found.tolist() == pytest.approx([0.1 + 0.1, 0.2 + 0.3])
    assert account.spread == pytest.approx(0.4)
    for_a, for_b = product_shares(torch.matmul, torch.zeros(2, 3), torch.ones(3, 1), torch.ones(2, 1), account)
    assert for_a.flatten().tolist() == pytest.approx([1 / 6] * 6)
    assert for_b.flatten().tolist() == pytest.approx([1 / 3] * 3)
    assert account.spread == pytest.approx(2.4)


def test_division_by_zero_is_zero() -> None:
    assert divide(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.0, -4.0, 1.0])).tolist() == [0, -0.5, 0]


def test_the_account_knows_the_worst_rule() -> None:
    account = Account(sent=2.0)
    x = torch.tensor([1.0, 1.0], requires_grad=True)
    good = Rule.apply(torch.relu, identity_share, account, "good", x)  # type: ignore[no-untyped-call]
    bad = Rule.apply(torch.relu, lambda r: (0.75 * r,), account, "bad", good)  # type: ignore[no-untyped-call]
    bad.backward(torch.tensor([0.5, 1.5]))
    assert x.grad is not None
    assert x.grad.tolist() == [0.375, 1.125]
    assert (account.worst, account.worst_at, account.lost) == (0.25, "bad", 0.5)


def test_nothing_is_worse_than_a_number_that_is_none() -> None:
    account = Account(sent=1.0)
    account.enter("broken", torch.tensor([1.0]), (torch.tensor([float("nan")]),))
    account.enter("later", torch.tensor([1.0]), (torch.tensor([5.0]),))
    assert account.worst_at == "broken"
