from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bitplan.kernels.mixed import ExpertMixed, stack_experts
from bitplan.kernels.product import moe_matmul
from bitplan.kernels.triton.expert_mixed import align
from triton_cases import BACKEND, DEVICE, TOLERANCE, Numbers, activations, apart, guarded, matrix, recorded


def experts_of(
    bits: list[int], outputs: int, inputs: int, size: int, zeros: str = "between"
) -> tuple[ExpertMixed, list[Numbers]]:
    pairs = [matrix(width, outputs, inputs, size, index, zeros=zeros) for index, width in enumerate(bits)]
    return stack_experts([planes for planes, _ in pairs]), [weights for _, weights in pairs]


def choose(tokens: int, each: int, experts: int, seed: int = 0) -> Tensor:
    """Different experts for a token, as a router's top k are."""
    scores = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(seed))
    return scores.topk(each, 1).indices.to(DEVICE)


def token_by_token(x: Tensor, weights: list[Numbers], chosen: Tensor) -> Numbers:
    numbers = x.double().cpu().numpy()
    return np.stack([numbers[token] @ weights[expert] for token, row in enumerate(chosen.tolist()) for expert in row])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("bits", "shape", "size", "tokens", "each", "zeros"),
    [
        ([4, 2, 3, 2], (77, 96), 32, 9, 2, "between"),
        ([8, 8, 1], (33, 70), 70, 1, 1, "middle"),  # one token, padded words, experts that nobody chose
        ([5, 6, 7], (64, 64), 64, 5, 3, "whole"),  # every expert for every token
        ([4, 4], (5, 128), 64, 40, 1, "between"),  # more than one block of an expert
    ],
)
def test_agrees_with_a_loop_over_tokens(
    bits: list[int], shape: tuple[int, int], size: int, tokens: int, each: int, zeros: str, dtype: torch.dtype
) -> None:
    experts, weights = experts_of(bits, *shape, size, zeros)
    chosen = choose(tokens, each, len(bits))
    x = activations(tokens, shape[1], dtype)
    y = moe_matmul(x, experts, chosen, backend=BACKEND)
    assert y.dtype == dtype
    assert apart(y, token_by_token(x, weights, chosen)) < TOLERANCE[dtype]


def test_all_tokens_choose_one_expert() -> None:
    experts, weights = experts_of([2, 4, 3], 33, 64, 32)
    chosen = torch.full((37, 1), 1, device=DEVICE)
    x = activations(37, 64, torch.float32)
    y = moe_matmul(x, experts, chosen, backend=BACKEND)
    assert apart(y, x.double().cpu().numpy() @ weights[1]) < TOLERANCE[torch.float32]


def test_a_token_may_choose_an_expert_twice_and_weigh_its_results() -> None:
    experts, weights = experts_of([2, 4, 3], 33, 64, 32)
    chosen = torch.tensor([[2, 2], [0, 2]], device=DEVICE)
    routing = torch.tensor([[0.5, 2.0], [0.0, -1.0]], device=DEVICE)
    x = activations(2, 64, torch.float32)
    y = moe_matmul(x, experts, chosen, routing, out_dtype=torch.float32, backend=BACKEND)
    expected = token_by_token(x, weights, chosen) * routing.reshape(-1, 1).double().cpu().numpy()
    assert apart(y, expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize(("widths", "launches"), [([4], 1), ([2, 3, 8], 1), ([1, 2, 3, 4], 2), ([1, 2, 3, 4, 5, 6, 7], 3)])
def test_launches_depend_on_the_widths_alone(widths: list[int], launches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for copies in (1, 3):
        experts, weights = experts_of(widths * copies, 17, 32, 32)
        chosen = choose(4, min(3, len(widths) * copies), len(widths) * copies)
        x = activations(4, 32, torch.float32)
        with recorded(monkeypatch) as recording:
            y = moe_matmul(x, experts, chosen, backend=BACKEND)
        assert [name for name, _ in recording] == ["expert_kernel"] * launches
        assert apart(y, token_by_token(x, weights, chosen)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_nothing_outside_is_read_or_written(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pad rows of a block would lie behind the last row."""
    experts, _ = experts_of([3, 1, 4, 1, 5], 77, 70, 32)
    assert experts.zeros is not None
    chosen = choose(7, 3, 5)
    x = activations(7, 70, dtype)
    y = moe_matmul(x, experts, chosen, backend=BACKEND)
    assert not y.isnan().any()
    with guarded(monkeypatch, x, experts.words, experts.scales, experts.zeros) as (inside, words, scales, zeros):
        again = moe_matmul(inside, replace(experts, words=words, scales=scales, zeros=zeros), chosen, backend=BACKEND)
    assert torch.equal(y, again)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # infinity times zero, in the interpreter
def test_an_infinite_token_stays_to_itself() -> None:
    experts, weights = experts_of([4, 4], 33, 45, 45)
    chosen = torch.tensor([[0], [0], [0]], device=DEVICE)
    x = activations(3, 45, torch.float32)
    x[1] = float("inf")
    y = moe_matmul(x, experts, chosen, backend=BACKEND)
    assert not y[1].isfinite().any()
    assert apart(y[::2], x[::2].double().cpu().numpy() @ weights[0]) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("seed", range(30))
def test_blocks_hold_every_pair_once_sorted_by_width_and_expert(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts, tokens, each, size = (int(rng.integers(1, most)) for most in (12, 40, 4, 20))
    bits = torch.tensor(rng.integers(1, 9, experts), dtype=torch.int32)
    chosen = torch.tensor(rng.integers(0, experts, (tokens, each)))
    if seed % 3 == 0:
        chosen[:] = chosen[0, 0]
    aligned = align(chosen.to(DEVICE), bits.to(DEVICE), size)
    flat, filled = chosen.reshape(-1).tolist(), int(aligned.filled)
    assert aligned.pairs.dtype == aligned.experts.dtype == torch.int32
    assert len(aligned.pairs) == aligned.blocks * size
    assert filled <= len(aligned.experts) == aligned.blocks
    found: dict[int, list[int]] = defaultdict(list)
    owners = aligned.experts.tolist()[:filled]
    for block, expert in enumerate(owners):
        pairs = [pair for pair in aligned.pairs[block * size : (block + 1) * size].tolist() if pair != len(flat)]
        assert pairs
        assert all(flat[pair] == expert for pair in pairs)
        found[expert] += pairs
    assert sorted(pair for pairs in found.values() for pair in pairs) == list(range(len(flat)))
    assert all(pairs == sorted(pairs) for pairs in found.values())
    assert all(len(pairs) > (owners.count(expert) - 1) * size for expert, pairs in found.items())  # none could do with fewer
    order = [(int(bits[expert]), expert) for expert in owners]
    assert order == sorted(order)
    assert (aligned.pairs[filled * size :] == len(flat)).all()
