from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from bitplan.kernels.formats import parse
from bitplan.kernels.layout import opened
from bitplan.kernels.packing import PackedWeight, pack_weight
from bitplan.kernels.reference import dequantize, dequantize_transposed, gather_rows, product

NAMES = ["int2-g32", "int3-g64-asym", "int4-row", "int5-row-asym", "int6-g128", "int7-g32-asym", "int8-g64", "int8-row-asym"]
SHAPES = [(1, 1), (5, 33), (77, 211), (64, 128), (3, 31)]


def random_weight(name: str, shape: tuple[int, int], seed: int = 0) -> tuple[PackedWeight, npt.NDArray[np.float64]]:
    """A packed matrix and, by loops over its definition in float64, the numbers (out, in) that it stands for."""
    fmt, (outputs, inputs) = parse(name), shape
    rng = np.random.default_rng(seed)
    size = fmt.group_size or inputs
    groups = (inputs + size - 1) // size
    codes = rng.integers(0, 2**fmt.bits, (inputs, outputs))
    scales = (rng.uniform(0.5, 2, (groups, outputs)) * 10 ** rng.uniform(-3, 1, (1, outputs))).astype(np.float16)
    zeros = rng.integers(0, 2**fmt.bits, (groups, outputs))
    if fmt.symmetric:
        zeros[:] = 2 ** (fmt.bits - 1)
    numbers = np.empty((outputs, inputs))
    for o in range(outputs):
        for i in range(inputs):
            numbers[o, i] = (float(codes[i, o]) - float(zeros[i // size, o])) * float(scales[i // size, o])
    packed = pack_weight(
        fmt, shape, torch.tensor(codes), torch.tensor(scales), None if fmt.symmetric else torch.tensor(zeros, dtype=torch.uint8)
    )
    return packed, numbers


def apart(y: Tensor, exact: npt.NDArray[np.float64]) -> float:
    return float(np.linalg.norm(y.double().numpy() - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_code_minus_zero_times_scale(name: str, shape: tuple[int, int]) -> None:
    """Exactly: a code difference of 9 bits times an fp16 scale of 11 fits in the 24 bits of float32."""
    packed, numbers = random_weight(name, shape)
    assert np.array_equal(dequantize(packed).double().numpy(), numbers)
    assert np.array_equal(dequantize_transposed(packed).double().numpy(), numbers.T)
    assert np.array_equal(product(torch.eye(shape[1]), opened(packed)).double().numpy(), numbers.T)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_product_agrees_with_float64(name: str, shape: tuple[int, int]) -> None:
    packed, numbers = random_weight(name, shape)
    for rows in (1, 2, 17):
        x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
        assert apart(product(x, opened(packed)), x.double().numpy() @ numbers.T) < 1e-6  # float32, at most 211 terms
    assert product(torch.empty(0, shape[1]), opened(packed)).shape == (0, shape[0])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 1.2e-2)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_product_is_in_the_dtype_of_its_input(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Weights and result are rounded to `dtype`: 2^-11 and 2^-8 relative, three times over with room."""
    packed, numbers = random_weight(name, (33, 100))
    x = torch.randn(4, 100, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = product(x, opened(packed))
    assert y.dtype == dtype
    assert 0 < apart(y, x.double().numpy() @ numbers.T) < tolerance


def test_inputs_may_have_more_axes_and_strides() -> None:
    packed, numbers = random_weight("int3-g64-asym", (7, 70))
    x = torch.randn(70, 3, 2, generator=torch.Generator().manual_seed(0)).permute(2, 1, 0)
    y = product(x, opened(packed))
    assert y.shape == (2, 3, 7)
    assert apart(y, x.double().numpy() @ numbers.T) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_gathered_rows_are_rows_of_the_matrix(name: str) -> None:
    for shape in ((9, 33), (40, 70), (64, 128), (5, 211)):
        packed, numbers = random_weight(name, shape)
        rows = torch.tensor([[0, shape[0] - 1, 2], [3, 3, 0]])
        gathered = gather_rows(opened(packed), rows)
        assert gathered.dtype == torch.float32
        assert np.array_equal(gathered.double().numpy(), numbers[rows.numpy()])


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym"])
def test_no_rows_may_be_gathered(name: str) -> None:
    packed, _ = random_weight(name, (9, 70))
    assert gather_rows(opened(packed), torch.empty(2, 0, dtype=torch.int64)).shape == (2, 0, 70)


@pytest.mark.parametrize("scale", [2.0**-24, 65504.0])
def test_the_smallest_and_the_largest_scale(scale: float) -> None:
    codes = torch.tensor([[0, 255], [128, 1]])
    packed = pack_weight(parse("int8-row"), (2, 2), codes, torch.full((1, 2), scale), None)
    assert torch.equal(dequantize(packed), (codes.T - 128) * torch.tensor(scale))
