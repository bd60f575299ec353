from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from bitplan.kernels.layout import FieldPlanes, pack
from bitplan.kernels.mixed import ExpertMixed, stack_experts
from bitplan.kernels.packing import FIELDS
from bitplan.kernels.product import chosen_backend, matmul, moe_matmul
from bitplan.kernels.reference import transposed_numbers
from matrices import apart, exact_product, experts_of, mixed_of, numbers_by_loops, random_planes

TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 1.2e-2, torch.float32: 1e-6}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("bits", range(1, 9))
def test_products_against_float64(bits: int, dtype: torch.dtype) -> None:
    for seed, (shape, size) in enumerate(itertools.product([(1, 1), (5, 33), (7, 70), (16, 96)], (32, 64, 128))):
        planes = random_planes(bits, shape, size, dtype, seed)
        numbers = numbers_by_loops(planes)
        x = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(seed)).to(dtype)
        for rows in (1, 3):
            y = matmul(x[:rows], planes, backend="torch")
            assert y.dtype == dtype
            assert apart(y, exact_product(x[:rows], numbers)) < TOLERANCES[dtype]


def test_one_hot_rows_are_columns_of_the_matrix() -> None:
    """Exactly: one term is not rounded by adding zeros."""
    planes = random_planes(5, (7, 70), 32, seed=1)
    assert torch.equal(matmul(torch.eye(70), planes, backend="torch"), transposed_numbers(planes))
    assert torch.equal(matmul(torch.eye(70)[[69, 0]], planes, backend="torch"), transposed_numbers(planes)[[69, 0]])


def test_axes_strides_bias_and_dtype_of_a_product() -> None:
    planes = random_planes(4, (7, 70), 32, seed=1)
    numbers = numbers_by_loops(planes)
    x = torch.randn(70, 3, 2, generator=torch.Generator().manual_seed(0)).permute(2, 1, 0)
    exact = exact_product(x.reshape(6, 70), numbers)
    y = matmul(x, planes, backend="torch")
    assert apart(y, exact.view(2, 3, 7)) < 1e-6
    assert apart(matmul(x[1, 2], planes, backend="torch"), exact[5]) < 1e-6
    bias = torch.randn(7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(matmul(x, planes, bias, backend="torch"), y + bias)
    assert matmul(x.half(), planes, bias).dtype == torch.float16
    assert matmul(x.half(), planes, out_dtype=torch.float32, backend="torch").dtype == torch.float32
    assert matmul(x, planes, out_dtype=torch.bfloat16, backend="auto").dtype == torch.bfloat16
    assert torch.equal(matmul(x, planes, deterministic=False, backend="torch"), y)


def test_products_of_nothing() -> None:
    planes = random_planes(4, (7, 70), 32, seed=1)
    assert matmul(torch.empty(0, 70), planes).shape == (0, 7)
    assert matmul(torch.empty(2, 0, 70, dtype=torch.float16), planes).dtype == torch.float16
    no_outputs = FieldPlanes(torch.zeros(3, 4, 0, dtype=torch.int32), FIELDS[4], 70, torch.ones(1, 0), None, 70)
    assert matmul(torch.ones(3, 70), no_outputs).shape == (3, 0)
    no_inputs = FieldPlanes(torch.zeros(0, 4, 7, dtype=torch.int32), FIELDS[4], 0, torch.ones(0, 7), None, 32)
    assert torch.equal(matmul(torch.ones(3, 0), no_inputs), torch.zeros(3, 7))
    assert pack(torch.zeros(70, 0, dtype=torch.uint8), 3, torch.ones(1, 0)).words.shape == (3, 3, 0)
    assert transposed_numbers(no_outputs).shape == (70, 0)


def test_a_single_output_may_lie_anywhere() -> None:
    planes = random_planes(4, (7, 70), 32, seed=1)
    one = FieldPlanes(planes.words[:, :, 3:4].transpose(0, 2).transpose(0, 2), planes.fields, 70, planes.scales[:, 3:4], None, 32)
    apart_by_two = FieldPlanes(
        torch.stack([one.words, one.words], -1)[..., 0], planes.fields, 70, planes.scales[:, 3:4].contiguous(), None, 32
    )
    assert torch.equal(transposed_numbers(apart_by_two), transposed_numbers(one))
    x = torch.randn(2, 70)
    assert torch.allclose(matmul(x, apart_by_two), matmul(x, one, backend="torch"), atol=1e-4)


@pytest.mark.parametrize("fields", [((3, 0),), ((2, 7),), ((8, 0), (1, 0)), ((0, 0),)])
def test_fields_that_no_code_has(fields: tuple[tuple[int, int], ...]) -> None:
    rows = sum(width for width, _ in fields)
    with pytest.raises(ValueError, match="not of 1, 2, 4 or 8 bits within 8"):
        FieldPlanes(torch.zeros(1, rows, 5, dtype=torch.int32), fields, 32, torch.ones(1, 5), None, 32)


def test_what_a_product_refuses() -> None:
    planes, mixed = random_planes(4, (7, 64), 32), mixed_of([2, 4])[0]
    x = torch.ones(2, 64)
    for weight in (planes, mixed):
        for wrong in (x[:, :-1], torch.ones(()), x.T):
            with pytest.raises(ValueError, match="do not fit a matrix of 64 inputs"):
                matmul(wrong, weight)
        for wrong in (x.int(), x.bool()):
            with pytest.raises(ValueError, match=r"fp16, bf16 or fp32, not torch\.\w+; cast them first"):
                matmul(wrong, weight)
        for bias in (torch.ones(weight.outputs + 1), torch.ones(1, weight.outputs), torch.ones(())):
            with pytest.raises(ValueError, match=f"does not fit {weight.outputs} outputs"):
                matmul(x, weight, bias)
        with pytest.raises(ValueError, match=r"unknown back end 'abacus'; known: auto, .*torch"):
            matmul(x, weight, backend="abacus")
    with pytest.raises(ValueError, match="activations are on cpu and the packed words on meta; move them"):
        matmul(x, planes.to("meta"))
    with pytest.raises(ValueError, match="computes no gradients"):
        matmul(x.clone().requires_grad_(), planes, backend="interpret")
    with pytest.raises(ValueError, match="unknown back end 'abacus'"):
        chosen_backend("abacus", torch.device("cpu"))
    assert chosen_backend("torch", torch.device("cpu")).missing(torch.device("cpu")) is None


def moe_by_loops(x: Tensor, experts: ExpertMixed, chosen: Tensor, weights: Tensor | None) -> Tensor:
    rows = []
    for token, row in enumerate(chosen.tolist()):
        for place, expert in enumerate(row):
            y = exact_product(x[token : token + 1], numbers_by_loops(experts.expert(expert)))[0]
            rows.append(y if weights is None else y * float(weights[token, place]))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(
    ("bits", "tokens", "each"), [([4, 1, 8, 3, 4], 6, 2), ([2, 2], 1, 2), ([3], 4, 1), ([1, 2, 3, 4, 5, 6, 7, 8], 5, 8)], ids=str
)
def test_products_of_experts_against_loops(bits: list[int], tokens: int, each: int, dtype: torch.dtype) -> None:
    experts = stack_experts(experts_of(bits))
    random = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 70, generator=random).to(dtype)
    chosen = torch.stack([torch.randperm(len(bits), generator=random)[:each] for _ in range(tokens)])
    weights = torch.rand(tokens, each, generator=random)
    for indices in (chosen, chosen.int()):
        y = moe_matmul(x, experts, indices, backend="torch")
        assert y.dtype == dtype
        assert apart(y, moe_by_loops(x, experts, chosen, None)) < TOLERANCES[dtype]
    y = moe_matmul(x, experts, chosen, weights, backend="torch")
    assert y.dtype == dtype
    assert apart(y, moe_by_loops(x, experts, chosen, weights)) < TOLERANCES[dtype]
    assert moe_matmul(x, experts, chosen, weights, out_dtype=torch.float32, backend="torch").dtype == torch.float32


def test_one_expert_may_take_every_token_or_none() -> None:
    experts = stack_experts(experts_of([4, 2, 8]))
    x = torch.randn(4, 70, generator=torch.Generator().manual_seed(0))
    for index in range(3):
        y = moe_matmul(x, experts, torch.full((4, 1), index), backend="torch")
        assert torch.equal(y, matmul(x, experts.expert(index), backend="torch"))
    assert moe_matmul(x[:0], experts, torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 5)
    assert moe_matmul(x, experts, torch.zeros(4, 0, dtype=torch.int64)).shape == (0, 5)


def test_what_a_product_of_experts_refuses() -> None:
    experts = stack_experts(experts_of([4, 2, 8]))
    x, chosen = torch.ones(4, 70), torch.zeros(4, 2, dtype=torch.int64)
    for outside in (3, -1):
        wrong = chosen.clone()
        wrong[2, 1] = outside
        with pytest.raises(ValueError, match=r"an expert outside 0 \.\. 2"):
            moe_matmul(x, experts, wrong)
    for tokens, indices in ((x, chosen[:3]), (x, chosen[0]), (x, chosen.float()), (x[None], chosen[None]), (x[0], chosen)):
        with pytest.raises(ValueError, match=r"must be \(T, in\) and \(T, k\) integers"):
            moe_matmul(tokens, experts, indices)
    with pytest.raises(ValueError, match="must be of the shape of the chosen experts"):
        moe_matmul(x, experts, chosen, torch.ones(4))
    with pytest.raises(ValueError, match="do not fit a matrix of 70 inputs"):
        moe_matmul(x[:, 1:], experts, chosen)
    with pytest.raises(ValueError, match="cast them first"):
        moe_matmul(x.int(), experts, chosen)
    with pytest.raises(ValueError, match="unknown back end 'abacus'"):
        moe_matmul(x, experts, chosen, backend="abacus")
