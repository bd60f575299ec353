"""Packed matrices with known numbers, for tests of layouts and products."""

from __future__ import annotations

import torch
from torch import Tensor

from bitplan.kernels.layout import FieldPlanes, codes_of, pack
from bitplan.kernels.mixed import GroupMixed, pack_groups


def random_planes(bits: int, shape: tuple[int, int], size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> FieldPlanes:
    """A random (out, in) matrix in block order; every third one without zero points, the others' not whole."""
    random, (outputs, inputs) = torch.Generator().manual_seed(seed), shape
    groups = -(-inputs // size)
    zeros = torch.rand(groups, outputs, generator=random) * 2**bits
    scales = torch.rand(groups, outputs, generator=random) - 0.3  # some are negative
    codes = torch.randint(2**bits, (inputs, outputs), generator=random)
    return pack(codes, bits, scales.to(dtype), None if seed % 3 == 0 else zeros.to(dtype), group_size=size)


def numbers_by_loops(planes: FieldPlanes) -> list[list[float]]:
    """W (out, in), every entry from the definition."""
    codes, scales = codes_of(planes).tolist(), planes.scales.tolist()
    zeros = torch.full_like(planes.scales, 2 ** (planes.bits - 1)).tolist() if planes.zeros is None else planes.zeros.tolist()
    size = planes.group_size
    return [
        [(codes[i][o] - zeros[i // size][o]) * scales[i // size][o] for i in range(planes.inputs)] for o in range(planes.outputs)
    ]


def exact_product(x: Tensor, numbers: list[list[float]]) -> Tensor:
    """y[m, o] = sum_i x[m, i] W[o, i], float64."""
    products = [[sum(a * w for a, w in zip(row, weights, strict=True)) for weights in numbers] for row in x.double().tolist()]
    return torch.tensor(products, dtype=torch.float64).reshape(len(x), len(numbers))


def apart(y: Tensor, exact: Tensor) -> float:
    assert y.shape == exact.shape
    return float((y.double() - exact).norm() / exact.norm().clamp(min=1e-30))


def mixed_of(bits: list[int], outputs: int = 5, size: int = 32) -> tuple[GroupMixed, list[list[float]]]:
    """Groups of these widths, and the (out, in) numbers from loops."""
    groups = [random_planes(width, (outputs, size), size, seed=3 * g + 1) for g, width in enumerate(bits)]
    zeros = torch.cat([each.zeros for each in groups if each.zeros is not None])
    mixed = pack_groups(
        torch.cat([codes_of(each) for each in groups]), bits, torch.cat([each.scales for each in groups]), zeros, size
    )
    numbers = [[number for each in groups for number in numbers_by_loops(each)[o]] for o in range(outputs)]
    return mixed, numbers


def experts_of(bits: list[int], shape: tuple[int, int] = (5, 70), first_seed: int = 0) -> list[FieldPlanes]:
    return [random_planes(width, shape, 32, seed=first_seed + e) for e, width in enumerate(bits)]
