"""What every back end of packed products promises, on the same packed data: the numbers of the reference, and its products."""

from __future__ import annotations

import pytest
import torch

from bitplan.kernels.layout import pack
from bitplan.kernels.mixed import GroupMixed, stack_experts
from bitplan.kernels.product import (
    AUTOMATIC,
    BACKENDS,
    _load,
    chosen_backend,
    matmul,
    moe_matmul,
    transposed_change,
    transposed_numbers,
)
from bitplan.kernels.reference import transposed_numbers as reference_numbers
from matrices import apart, exact_product, experts_of, mixed_of, random_planes

CPU = torch.device("cpu")
TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 1.2e-2, torch.float32: 1e-6}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    reason = _load(name).missing(CPU)
    if reason is not None:
        with pytest.raises(ValueError, match="cannot compute on cpu: "):
            chosen_backend(name, CPU)
        pytest.skip(reason)
    return name


def test_the_automatic_ones_are_of_the_list_and_the_last_serves_everything() -> None:
    assert set(AUTOMATIC) <= set(BACKENDS)
    assert _load(AUTOMATIC[-1]).missing(torch.device("meta")) is None


@pytest.mark.parametrize("order", ["block", "nested"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_numbers_to_the_last_bit(backend: str, bits: int, order: str) -> None:
    for seed in (0, 1):  # without zero points, and with some that are not whole
        made = random_planes(bits, (7, 70), 32, seed=seed)
        codes = torch.randint(2**bits, (70, 7), generator=torch.Generator().manual_seed(seed))
        planes = pack(codes, bits, made.scales, made.zeros, group_size=32, order=order)  # type: ignore[arg-type]
        assert torch.equal(transposed_numbers(planes, backend), reference_numbers(planes))
        weight = torch.randn(70, 7, generator=torch.Generator().manual_seed(seed))
        change = transposed_change(planes, weight, torch.bfloat16, backend)
        assert torch.equal(change, (reference_numbers(planes) - weight).bfloat16())


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_products(backend: str, rows: int, dtype: torch.dtype) -> None:
    for bits in (1, 3, 4, 7, 8):
        planes = random_planes(bits, (33, 70), 32, seed=bits)
        x = torch.randn(rows, 70, generator=torch.Generator().manual_seed(rows)).to(dtype)
        y = matmul(x, planes, backend=backend)
        assert y.dtype == dtype
        assert apart(y, x.double() @ reference_numbers(planes).double()) < TOLERANCES[dtype]
        assert torch.equal(matmul(x, planes, backend=backend), y)


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_mixed_groups(backend: str, rows: int) -> None:
    mixed, numbers = mixed_of([4, 2, 8, 2, 4], outputs=9)
    assert isinstance(mixed, GroupMixed)
    x = torch.randn(rows, 160, generator=torch.Generator().manual_seed(rows))
    assert apart(matmul(x, mixed, backend=backend), exact_product(x, numbers)) < 1e-6


@pytest.mark.parametrize(("tokens", "slots"), [(1, 1), (1, 5), (9, 2)])
def test_mixed_experts(backend: str, tokens: int, slots: int) -> None:
    experts = stack_experts(experts_of([4, 1, 8, 3, 4], (33, 70)))
    random = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, 70, generator=random)
    chosen = torch.stack([torch.randperm(5, generator=random)[:slots] for _ in range(tokens)])
    y = moe_matmul(x, experts, chosen, backend=backend)
    for row, (t, j) in enumerate((t, j) for t in range(tokens) for j in range(slots)):
        exact = x[t].double() @ reference_numbers(experts.expert(int(chosen[t, j]))).double()
        assert apart(y[row], exact) < 1e-6
