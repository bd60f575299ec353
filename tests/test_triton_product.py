from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from bitplan.kernels.layout import FieldPlanes, codes_of, pack
from bitplan.kernels.product import chosen_backend, matmul
from bitplan.kernels.reference import transposed_numbers
from bitplan.kernels.triton import running
from bitplan.kernels.triton.dequantize import dequantized, unpacked
from triton_cases import BACKEND, DEVICE, TOLERANCE, activations, apart, exact, guarded, matrix, numbers, recorded, rounded

ROWS = (1, 2, 3, 15, 16, 17, 33)
SHAPES = ((1, 1), (5, 33), (77, 211), (64, 128), (130, 320), (256, 256))
GROUPS = (32, 64, 128, None)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def case(index: int) -> tuple[object, ...]:
    """Over 56 of them every width meets every number of rows, and either meets every dtype; the rest is drawn."""
    drawn = random.Random(index)
    return (
        1 + index % 8,
        ROWS[index % 7],
        DTYPES[index % 3],
        drawn.choice(SHAPES),
        drawn.choice(GROUPS),
        drawn.choice(("block", "nested")),
        drawn.choice(("middle", "whole", "between")),
        drawn.choice(DTYPES),
    )


@pytest.mark.parametrize(
    ("bits", "rows", "dtype", "shape", "group", "order", "zeros", "scales"), [case(index) for index in range(56)]
)
def test_agrees_with_float64(
    bits: int,
    rows: int,
    dtype: torch.dtype,
    shape: tuple[int, int],
    group: int | None,
    order: str,
    zeros: str,
    scales: torch.dtype,
) -> None:
    outputs, inputs = shape
    planes, weights = matrix(bits, outputs, inputs, group or inputs, rows, order=order, dtype=scales, zeros=zeros)
    x = activations(rows, inputs, dtype)
    y = matmul(x, planes, backend=BACKEND)
    assert y.dtype == dtype
    assert y.shape == (rows, outputs)
    assert apart(y, exact(x, weights)) < TOLERANCE[dtype]


@pytest.mark.parametrize("order", ["block", "nested"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_rows_of_the_identity_give_the_matrix_exactly(bits: int, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through each of the kernels: 3, 45 and 70 rows."""
    planes, weights = matrix(bits, 77, 70, 32, bits, order=order)
    expected = transposed_numbers(planes)
    assert np.array_equal(expected.double().cpu().numpy(), weights.astype(np.float32))
    identity = torch.eye(70, device=DEVICE)
    with recorded(monkeypatch) as launches:
        for first, last in ((31, 34), (67, 70), (25, 70), (0, 70)):
            assert torch.equal(matmul(identity[first:last], planes, backend=BACKEND), expected[first:last])
    assert {"gemv_kernel", "gemm_kernel", "dequantize_kernel"} <= {name for name, _ in launches}


@pytest.mark.parametrize(("order", "group"), [("block", 32), ("nested", 70)])
@pytest.mark.parametrize("bits", range(1, 9))
def test_numbers_and_codes_are_those_of_the_reference(bits: int, order: str, group: int) -> None:
    planes, _ = matrix(bits, 130, 70, group, bits, order=order)
    for dtype in DTYPES:
        assert torch.equal(dequantized(planes, dtype), rounded(transposed_numbers(planes), dtype))
    assert torch.equal(unpacked(planes), codes_of(planes))
    numbers_of = chosen_backend(BACKEND, DEVICE).transposed_numbers
    assert torch.equal(numbers_of(planes), transposed_numbers(planes))


def test_a_matrix_without_inputs() -> None:
    planes = pack(torch.empty(0, 5, dtype=torch.int64), 4, torch.empty(0, 5)).to(DEVICE)
    assert dequantized(planes, torch.float16).shape == (0, 5)


def test_codes_are_those_that_were_packed() -> None:
    codes = torch.arange(256).view(64, 4)
    for order in ("block", "nested"):
        packed = pack(codes, 8, torch.ones(1, 4), order=order).to(DEVICE)
        assert torch.equal(unpacked(packed).cpu().long(), codes)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # by NumPy, in the interpreter
def test_numbers_beyond_half_precision_are_infinite() -> None:
    planes = pack(torch.tensor([[0, 255]]), 8, torch.full((1, 2), 6e4), torch.zeros(1, 2)).to(DEVICE)
    assert dequantized(planes, torch.float16).tolist() == [[0.0, float("inf")]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_rows_are_multiplied_by_torch(dtype: torch.dtype) -> None:
    planes, weights = matrix(3, 77, 211, 64, 0)
    x = activations(300, 211, dtype)
    y = matmul(x, planes, backend=BACKEND)
    assert torch.equal(y, x @ rounded(transposed_numbers(planes), dtype))
    assert apart(y, exact(x, weights)) < TOLERANCE[dtype]


@pytest.mark.parametrize("rows", [1, 4, 17, 100])
@pytest.mark.parametrize("order", ["block", "nested"])
@pytest.mark.parametrize(("outputs", "inputs", "group"), [(77, 211, 64), (5, 33, 33), (130, 96, 32)])
def test_nothing_outside_is_read_or_written(
    outputs: int, inputs: int, group: int, order: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Poison around every argument, in every output and in every workspace: the result stays, bit for bit."""
    planes, _ = matrix(5, outputs, inputs, group, 1, order=order)
    assert planes.zeros is not None
    x = activations(rows, inputs, torch.float16)
    y = matmul(x, planes, backend=BACKEND)
    assert not y.isnan().any()
    given = (planes.words, planes.scales, planes.zeros, x)
    with guarded(monkeypatch, *given) as (words, scales, zeros, inside):
        again = matmul(inside, replace(planes, words=words, scales=scales, zeros=zeros), backend=BACKEND)
    assert torch.equal(y, again)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # infinity times zero, in the interpreter
@pytest.mark.parametrize("rows", [3, 17])
def test_infinite_rows_stay_to_themselves(rows: int) -> None:
    """Beyond the last input of a row lies the next row."""
    planes, weights = matrix(4, 33, 45, 45, 0)
    x = activations(rows, 45, torch.float32)
    x[1::2] = float("inf")
    y = matmul(x, planes, backend=BACKEND)
    assert apart(y[::2], exact(x[::2], weights)) < 1e-6
    assert not y[1::2].isfinite().any()


def test_strided_activations_more_axes_and_no_rows() -> None:
    planes, weights = matrix(3, 7, 70, 32, 0)
    x = activations(70, 6, torch.float32).view(70, 3, 2).permute(2, 1, 0)
    assert not x.is_contiguous()
    y = matmul(x, planes, backend=BACKEND)
    assert y.shape == (2, 3, 7)
    assert apart(y, exact(x, weights)) < 1e-6
    assert matmul(x[:0], planes, backend=BACKEND).shape == (0, 3, 7)


def test_a_bias_and_another_dtype_for_the_result() -> None:
    planes, weights = matrix(8, 33, 64, 32, 0, zeros="middle")
    for rows in (2, 20, 400):
        x = activations(rows, 64, torch.float16)
        y = matmul(x, planes, torch.ones(33, device=DEVICE), out_dtype=torch.float32, backend=BACKEND)
        assert y.dtype == torch.float32
        assert apart(y - 1, exact(x, weights)) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("rows", [2, 18])
@pytest.mark.parametrize("scale", [1e-8, 6e4, -0.75])
@pytest.mark.parametrize("zero", ["least", "greatest", "outside"])
def test_extreme_scales_and_zeros(scale: float, zero: str, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for bits in (1, 5, 8):
        point = {"least": 0.0, "greatest": 2.0**bits - 1, "outside": -3.5}[zero]
        codes = torch.randint(0, 2**bits, (70, 33), generator=generator)
        scales, zeros = torch.full((3, 33), scale), torch.full((3, 33), point)
        planes = pack(codes, bits, scales, zeros, group_size=32).to(DEVICE)
        for dtype in (torch.bfloat16, torch.float32):
            x = activations(rows, 70, dtype)
            y = matmul(x, planes, backend=BACKEND)
            assert apart(y, exact(x, numbers(codes, scales, zeros, 32))) < TOLERANCE[dtype]


def test_the_largest_scale_in_half_precision() -> None:
    """Numbers up to 60000 fit in fp16, and sums of two of them in the float32 that is asked for."""
    codes = torch.tensor([[0, 1, 1], [1, 1, 0]])
    scales, zeros = torch.full((1, 3), 6e4, dtype=torch.float16), torch.zeros(1, 3, dtype=torch.float16)
    planes = pack(codes, 1, scales, zeros).to(DEVICE)
    for rows in (1, 9):
        y = matmul(torch.ones(rows, 2, dtype=torch.float16, device=DEVICE), planes, out_dtype=torch.float32, backend=BACKEND)
        assert torch.equal(y, torch.tensor([[6e4, 12e4, 6e4]], device=DEVICE).expand(rows, 3))


@pytest.mark.parametrize("rows", [1, 3, 20])
def test_inputs_cut_into_parts(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many processors: many parts. Deterministic: nothing is added in memory, and two runs give the same bits."""
    monkeypatch.setattr(running, "processors", lambda device: 16)
    planes, weights = matrix(4, 77, 160, 32, 0)
    x = activations(rows, 160, torch.float32)
    with recorded(monkeypatch) as launches:
        y = matmul(x, planes, backend=BACKEND)
    assert [name for name, _ in launches] == ["gemv_kernel" if rows < 5 else "gemm_kernel", "sum_kernel"]
    assert not launches[0][1]["ATOMIC"]
    assert torch.equal(y, matmul(x, planes, backend=BACKEND))
    with recorded(monkeypatch) as launches:
        added = matmul(x, planes, deterministic=False, backend=BACKEND)
    assert [constants["ATOMIC"] for _, constants in launches] == [True]
    half = matmul(x.half(), planes, deterministic=False, backend=BACKEND)
    for result, dtype in ((y, torch.float32), (added, torch.float32), (half, torch.float16)):
        assert result.dtype == dtype
        assert apart(result, exact(x, weights)) < TOLERANCE[dtype]


def test_more_parts_than_one_block_of_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "processors", lambda device: 16)
    planes, weights = matrix(2, 700, 64, 32, 0)
    x = activations(4, 64, torch.float32)
    assert planes.outputs * 4 > 2 * running.SUMMED
    assert apart(matmul(x, planes, backend=BACKEND), exact(x, weights)) < 1e-6


def test_words_that_are_a_view() -> None:
    """As a slice of the outputs of a larger matrix is."""
    whole, weights = matrix(6, 96, 70, 32, 0)
    assert whole.zeros is not None
    part = FieldPlanes(whole.words[:, :, 32:75], whole.fields, 70, whole.scales[:, 32:75], whole.zeros[:, 32:75], 32)
    for rows in (1, 16, 70):
        x = activations(rows, 70, torch.float32)
        assert apart(matmul(x, part, backend=BACKEND), exact(x, weights[:, 32:75])) < 1e-6
