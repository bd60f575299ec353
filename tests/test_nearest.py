from __future__ import annotations

import pytest
import torch

from bitplan.kernels.formats import FORMATS, Format, parse
from bitplan.kernels.packing import PackedWeight, unpack_zeros
from bitplan.kernels.reference import dequantize
from bitplan.kernels.rounding import grid, round_nearest

INTS = [name for name, fmt in FORMATS.items() if fmt.family == "int"]


def gaussian(outputs: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


def each(packed: PackedWeight) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale and the zero point of every weight, (out, in)."""
    inputs = packed.shape[1]
    group = torch.arange(inputs) // (packed.format.group_size or inputs)
    zeros = unpack_zeros(packed)
    if zeros is None:
        zeros = torch.full(packed.scales.shape, 2 ** (packed.format.bits - 1))
    return packed.scales.float()[group].T, zeros[group].T


@pytest.mark.parametrize("name", [name for name in INTS if "-g32" in name or "-row" in name])
def test_no_code_would_be_nearer(name: str) -> None:
    """Each weight takes, of all numbers on its group's grid, one of the nearest."""
    fmt, weight = FORMATS[name], gaussian(6, 70)
    packed = round_nearest(weight, fmt)
    scale, zero = each(packed)
    grid_values = (torch.arange(2**fmt.bits) - zero[..., None]).double() * scale[..., None].double()
    nearest = (grid_values - weight[..., None].double()).abs().amin(-1)
    assert torch.allclose((dequantize(packed).double() - weight.double()).abs(), nearest, rtol=0, atol=1e-6)


def test_no_format_beats_shannon_and_none_is_far_from_its_bound() -> None:
    """The distortion of N(0, 1) is at least 4^-rate (rate: all stored bits). Ours loses 7.4 dB to it at most: 1.5 for a
    uniform grid, 2.8 or less for not coding entropy, the rest for scales and zero points."""
    weight = gaussian(64, 1024, seed=1)
    for name in INTS:
        error = float((dequantize(round_nearest(weight, FORMATS[name])) - weight).square().mean() / weight.square().mean())
        bound = 4.0 ** -FORMATS[name].bits_per_weight((64, 1024))
        assert bound < error < 5.5 * bound, name


@pytest.mark.parametrize("name", ["int2-g64", "int3-g64-asym", "int4-g128", "int5-row-asym"])
def test_the_search_never_loses_to_the_full_range(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fmt, weight = parse(name), gaussian(40, 128, seed=2) ** 3
    searched = (dequantize(round_nearest(weight, fmt)) - weight).square()
    monkeypatch.setattr(grid, "SHRINK", {})
    full = (dequantize(round_nearest(weight, fmt)) - weight).square()
    groups = -(-128 // (fmt.group_size or 128))
    by_group = [square.view(40, groups, -1).sum(-1) for square in (searched, full)]
    assert bool((by_group[0] <= by_group[1] * (1 + 1e-6)).all())
    assert float(by_group[0].sum()) < float(by_group[1].sum())


@pytest.mark.parametrize("name", ["int2-g32", "int2-g32-asym", "int8-row", "int8-row-asym"])
def test_zeros_stay_zeros(name: str) -> None:
    weight = gaussian(5, 64)
    weight[:, :32] = 0
    weight[2] = 0
    rounded = dequantize(round_nearest(weight, parse(name)))
    assert not rounded[:, :32].any()
    assert not rounded[2].any()
    assert rounded[0, 32:].any()


@pytest.mark.parametrize("constant", [-7.0, -0.03, 0.5, 311.0])
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_constant_group(bits: int, constant: float) -> None:
    """Asymmetric: the constant is an end of its grid, so only the scale's rounding to fp16 is left, 2^-11 of itself.
    Symmetric: the positive end of the widest grid lies half a step below, 1 / (2^bits - 1) of the constant."""
    weight = torch.full((3, 40), constant)
    apart = (dequantize(round_nearest(weight, Format("int", bits, 32, symmetric=False))) - weight).abs().max()
    assert float(apart) <= abs(constant) * 2**-11 * 1.001
    apart = (dequantize(round_nearest(weight, Format("int", bits, 32))) - weight).abs().max()
    assert float(apart) <= abs(constant) * (1 / (2**bits - 1) + 2**-11)


@pytest.mark.parametrize("name", ["int7-g32", "int7-g32-asym", "int8-g64", "int8-g64-asym"])
@pytest.mark.parametrize("size", [1e-2, 1.0, 1e3])
def test_seven_and_eight_bits_are_within_half_a_step(name: str, size: float) -> None:
    """Nothing is clipped there but by the scale's rounding to fp16, which moves the far end by levels / 2 * 2^-11 steps."""
    packed = round_nearest(gaussian(9, 128) * size, parse(name))
    steps = (dequantize(packed) - gaussian(9, 128) * size).abs() / each(packed)[0]
    assert float(steps.max()) <= 0.5 + 2**packed.format.bits * 2**-11


@pytest.mark.parametrize("name", ["int2-g32", "int4-g32-asym", "int8-row"])
def test_weights_beyond_fp16_are_clipped_and_never_infinite(name: str) -> None:
    fmt = parse(name)
    rounded = dequantize(round_nearest(gaussian(4, 64) * 1e9, fmt))
    assert bool(torch.isfinite(rounded).all())
    assert float(rounded.abs().max()) <= 65504 * 2**fmt.bits
    assert float(rounded.abs().max()) >= 65504


@pytest.mark.parametrize("name", ["int2-g32", "int4-g32-asym", "int8-row", "int8-row-asym"])
def test_weights_below_fp16_are_no_worse_than_zero(name: str) -> None:
    weight = gaussian(4, 64) * 1e-9
    rounded = dequantize(round_nearest(weight, parse(name)))
    assert float((rounded - weight).square().sum()) <= float(weight.square().sum())


@pytest.mark.parametrize("name", ["int4-g32", "int4-g32-asym", "int8-row"])
def test_scaling_by_a_power_of_two_scales_the_result(name: str) -> None:
    weight = gaussian(6, 70)
    small, large = (dequantize(round_nearest(weight * size, parse(name))) / size for size in (2.0**-5, 2.0**9))
    assert torch.equal(small, large)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_weight_may_have_any_float_dtype_and_is_left_alone(dtype: torch.dtype) -> None:
    weight = gaussian(6, 70).to(dtype).T.contiguous().T
    kept = weight.clone()
    packed, plain = round_nearest(weight, parse("int4-g32")), round_nearest(weight.float(), parse("int4-g32"))
    assert torch.equal(packed.words, plain.words)
    assert torch.equal(weight, kept)
