"""What every format promises, held against each entry of FORMATS."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bitplan.kernels.formats import FORMATS, Format, parse
from bitplan.kernels.layout import opened
from bitplan.kernels.linear import QuantizedEmbedding, QuantizedLinear
from bitplan.kernels.packing import FIELDS, PackedWeight, unpack, unpack_zeros
from bitplan.kernels.reference import dequantize, gather_rows, product
from bitplan.kernels.rounding import inverse_factor, round_gptq, round_nearest
from bitplan.kernels.rounding.grid import quantize
from bitplan.sensitivity.render import FLOATS

SHAPES = [(2, 2), (5, 33), (33, 100)]
formats = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
ints = pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS.values() if fmt.family == "int"], ids=lambda fmt: fmt.name)


def weight(shape: tuple[int, int]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[1]))


def methods(fmt: Format, shape: tuple[int, int]) -> list[PackedWeight]:
    """A matrix rounded by each method."""
    x = torch.randn(64, shape[1], generator=torch.Generator().manual_seed(0))
    return [round_nearest(weight(shape), fmt), *round_gptq(weight(shape), inverse_factor(x.T @ x), [fmt])]


def test_the_names_read_back() -> None:
    for name, fmt in FORMATS.items():
        assert fmt.name == name
        assert parse(name) is fmt


@formats
def test_the_promised_bytes_are_those_stored_and_no_less_than_the_codes(fmt: Format) -> None:
    for shape in SHAPES:
        assert fmt.bits_per_weight(shape) >= fmt.bits
        if fmt.family == "float":
            assert weight(shape).to(FLOATS[fmt.name]).nbytes == fmt.stored_bytes(shape)
        else:
            packed = round_nearest(weight(shape), fmt)
            assert sum(len(tensor.numpy().tobytes()) for tensor in packed.tensors().values()) == fmt.stored_bytes(shape)


@ints
def test_rounding_what_is_rounded_changes_nothing(fmt: Format) -> None:
    """Every method gives codes and zero points in range, positive scales, and numbers that lie on their own grid."""
    for packed in methods(fmt, (33, 100)):
        codes, zeros = unpack(packed.words, FIELDS[fmt.bits], 100), unpack_zeros(packed)
        assert 0 <= int(codes.min()) < int(codes.max()) <= 2**fmt.bits - 1
        assert (zeros is None) is fmt.symmetric
        assert bool(torch.isfinite(packed.scales).all())
        assert bool((packed.scales > 0).all())
        group = torch.arange(100) // (fmt.group_size or 100)
        zero = torch.tensor(2.0 ** (fmt.bits - 1)) if zeros is None else zeros[group].float()
        again = quantize(dequantize(packed).T, packed.scales.float()[group], zero, 2**fmt.bits - 1)
        assert torch.equal(again.int(), codes)


@ints
def test_one_matrix_in_every_reading(fmt: Format) -> None:
    """Dequantized, multiplied, gathered, and as modules: always the same numbers."""
    packed = round_nearest(weight((33, 100)), fmt)
    numbers = dequantize(packed)
    assert torch.equal(product(torch.eye(100), opened(packed)), numbers.T)
    assert torch.equal(gather_rows(opened(packed), torch.arange(33)), numbers)
    assert torch.equal(QuantizedLinear(packed)(torch.eye(100)), numbers.T)
    assert torch.equal(QuantizedEmbedding(packed, torch.float32)(torch.tensor([32, 0])), numbers[[32, 0]])
