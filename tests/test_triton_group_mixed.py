from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bitplan.kernels.mixed import GroupMixed, pack_groups
from bitplan.kernels.product import matmul
from bitplan.kernels.triton import running
from triton_cases import BACKEND, DEVICE, TOLERANCE, Numbers, activations, apart, exact, guarded, matrix, numbers, recorded


def mixed_matrix(bits: list[int], outputs: int, size: int, zeros: bool, seed: int = 0) -> tuple[GroupMixed, Numbers]:
    """Group g in bits[g], and the numbers (in, out) of all in float64."""
    generator = torch.Generator().manual_seed(seed)
    each = [torch.randint(0, 2**width, (size, outputs), generator=generator) for width in bits]
    scales = torch.rand(len(bits), outputs, generator=generator) + 0.25
    middle = torch.tensor([2.0 ** (width - 1) for width in bits])[:, None].expand(len(bits), outputs)
    points = torch.rand(len(bits), outputs, generator=generator) * 2 * middle if zeros else middle
    codes = torch.cat(each)
    mixed = pack_groups(codes, bits, scales, points if zeros else None, size)
    there = tuple((planes.to(DEVICE), order.to(DEVICE)) for planes, order in mixed.classes)
    return GroupMixed(there), numbers(codes, scales, points, size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 17, 400])
@pytest.mark.parametrize(
    ("bits", "outputs", "size", "zeros"),
    [
        ([3, 2, 4, 3, 2, 2], 77, 32, True),  # any order of the groups
        ([8, 1, 5], 33, 64, False),  # classes of one group
        ([7, 6], 130, 96, True),  # a group that is not a power of two
        ([4, 4, 4], 5, 32, True),  # one class
    ],
)
def test_agrees_with_float64(
    bits: list[int], outputs: int, size: int, zeros: bool, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed, weights = mixed_matrix(bits, outputs, size, zeros)
    x = activations(rows, mixed.inputs, dtype)
    with recorded(monkeypatch) as launches:
        y = matmul(x, mixed, backend=BACKEND)
    assert y.dtype == dtype
    assert apart(y, exact(x, weights)) < TOLERANCE[dtype]
    products = [name for name, _ in launches if name != "sum_kernel"]
    if rows == 400:
        assert products == ["dequantize_kernel"] * len(set(bits))
    else:
        assert products == ["group_gemv_kernel" if rows < 5 else "group_gemm_kernel"]


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_the_groups(seed: int) -> None:
    bits = np.random.default_rng(seed).permutation([2, 2, 2, 3, 5, 5]).tolist()
    mixed, weights = mixed_matrix(bits, 40, 32, True, seed)
    for rows in (2, 9):
        x = activations(rows, mixed.inputs, torch.float32, seed)
        assert apart(matmul(x, mixed, backend=BACKEND), exact(x, weights)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("rows", [1, 4, 17, 400])
def test_a_single_class_gives_the_bits_of_the_plain_product(rows: int, dtype: torch.dtype) -> None:
    planes, _ = matrix(3, 77, 320, 64, 0)
    order = torch.arange(5, dtype=torch.int32, device=DEVICE)
    x = activations(rows, 320, dtype)
    mixed = matmul(x, GroupMixed(((planes, order),)), backend=BACKEND)
    assert torch.equal(mixed, matmul(x, planes, backend=BACKEND))


def test_groups_that_no_block_of_words_divides() -> None:
    """Two classes of one group of 33 inputs: each class ends in padded words."""
    first, one = matrix(4, 7, 33, 33, 0)
    second, two = matrix(3, 7, 33, 33, 1)
    swapped = [torch.tensor([number], dtype=torch.int32, device=DEVICE) for number in (1, 0)]
    mixed = GroupMixed(((first, swapped[0]), (second, swapped[1])))
    for rows in (1, 20, 100):
        x = activations(rows, 66, torch.float32)
        expected = exact(x, np.concatenate([two, one]))
        assert apart(matmul(x, mixed, backend=BACKEND), expected) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("rows", [3, 20])
def test_inputs_cut_into_parts(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More parts than the smaller classes have groups."""
    monkeypatch.setattr(running, "processors", lambda device: 16)
    mixed, weights = mixed_matrix([4, 2, 4, 4, 3], 33, 32, True)
    x = activations(rows, mixed.inputs, torch.float32)
    y = matmul(x, mixed, backend=BACKEND)
    with recorded(monkeypatch) as launches:
        added = matmul(x, mixed, deterministic=False, backend=BACKEND)
    assert [constants["ATOMIC"] for _, constants in launches] == [True]
    assert torch.equal(y, matmul(x, mixed, backend=BACKEND))
    for result in (y, added):
        assert apart(result, exact(x, weights)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("rows", [1, 17, 100])
def test_nothing_outside_is_read_or_written(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed, _ = mixed_matrix([4, 2, 4, 5], 77, 32, True)
    x = activations(rows, mixed.inputs, torch.float32)
    y = matmul(x, mixed, backend=BACKEND)

    def parts(each: GroupMixed) -> list[Tensor]:
        return [tensor for planes, order in each.classes for tensor in (planes.words, planes.scales, planes.zeros, order)]  # type: ignore[misc]

    with guarded(monkeypatch, x, *parts(mixed)) as (inside, *rest):
        classes = []
        for index, (planes, _) in enumerate(mixed.classes):
            words, scales, zeros, order = rest[4 * index : 4 * index + 4]
            classes.append((type(planes)(words, planes.fields, planes.inputs, scales, zeros, planes.group_size), order))
        again = matmul(inside, GroupMixed(tuple(classes)), backend=BACKEND)
    assert torch.equal(y, again)
