from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bitplan.kernels.layout import FieldPlanes, codes_of, nested_fields, pack
from bitplan.kernels.nested import narrowed, refitted, to_block_order, to_nested_order
from bitplan.kernels.packing import FIELDS
from bitplan.kernels.reference import transposed_numbers

Narrower = Callable[[FieldPlanes, int], FieldPlanes]

# Relative errors of Gaussian weights, min/max rounding in groups of 128 to 8 bits, then narrowed: a study of the layout.
TRUNCATED = {2: 0.753, 3: 0.372, 4: 0.182, 5: 0.086, 6: 0.039, 7: 0.016}  # with the parent's zero: what must not be done
MID_POINT = {2: 0.385, 3: 0.193, 4: 0.096, 5: 0.048, 6: 0.024, 7: 0.012}
REFITTED = {2: 0.367, 3: 0.191, 4: 0.096, 5: 0.047, 6: 0.024, 7: 0.012}
PRINTED = 0.0005  # half of the last digit above


def random_parent(
    bits: int = 8, inputs: int = 211, outputs: int = 5, size: int = 64, dtype: torch.dtype = torch.float16
) -> FieldPlanes:
    random = torch.Generator().manual_seed(bits)
    groups = -(-inputs // size)
    codes = torch.randint(2**bits, (inputs, outputs), generator=random)
    scales = (torch.rand(groups, outputs, generator=random) + 0.5) * 0.01
    zeros = torch.randint(2**bits, (groups, outputs), generator=random)
    return pack(codes, bits, scales.to(dtype), zeros.to(dtype), group_size=size, order="nested")


def gaussian_parent() -> tuple[Tensor, FieldPlanes]:
    """Gaussian weights (in, out) in float64, and their 8 bits by the minimum and maximum of each group."""
    size, inputs, outputs = 128, 1024, 256
    weights = torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups = weights.view(-1, size, outputs)
    low, high = groups.amin(dim=1), groups.amax(dim=1)
    scales = ((high - low) / 255).half()
    zeros = (-low / scales.double()).round()
    codes = (groups / scales.double()[:, None] + zeros[:, None]).round().clamp(0, 255).view(inputs, outputs)
    return weights, pack(codes.long(), 8, scales, zeros.half(), group_size=size, order="nested")


def error(weights: Tensor, planes: FieldPlanes) -> float:
    return float((transposed_numbers(planes).double() - weights).norm() / weights.norm())


@pytest.mark.parametrize("parent_bits", range(1, 9))
def test_the_first_planes_are_the_highest_bits(parent_bits: int) -> None:
    parent = random_parent(parent_bits)
    codes = codes_of(parent)
    for bits in range(1, parent_bits + 1):
        child = narrowed(parent, bits)
        assert child.bits == bits
        assert child.fields == nested_fields(bits)
        assert torch.equal(codes_of(child), codes >> (parent_bits - bits))


@pytest.mark.parametrize("make", [narrowed, refitted])
def test_the_words_are_those_of_the_parent(make: Narrower) -> None:
    parent = random_parent()
    stored = parent.words.untyped_storage()
    for bits in range(1, 9):
        child = make(parent, bits)
        assert child.words.data_ptr() == parent.words.data_ptr()
        assert child.words.untyped_storage().data_ptr() == stored.data_ptr()
        assert child.words.transpose(0, 1).is_contiguous()  # one prefix of the file, nothing between
    assert make(parent, 8) is parent


def test_a_child_of_a_child_is_a_child() -> None:
    parent = random_parent()
    straight, twice = narrowed(parent, 3), narrowed(narrowed(parent, 5), 3)
    assert torch.equal(transposed_numbers(straight), transposed_numbers(twice))
    assert straight.zeros is not None
    assert twice.zeros is not None
    assert torch.equal(straight.zeros, twice.zeros)


@pytest.mark.parametrize("whole_zeros", [True, False])
@pytest.mark.parametrize("bits", range(1, 8))
def test_a_code_means_the_middle_of_those_it_stands_for(bits: int, whole_zeros: bool) -> None:
    """By hand: the mean of the numbers of all 8-bit codes that begin with the child's code."""
    parent = random_parent(dtype=torch.float32)
    if not whole_zeros:
        assert parent.zeros is not None
        parent = replace(parent, zeros=parent.zeros + 0.3125)
    numbers, codes = transposed_numbers(narrowed(parent, bits)).double(), codes_of(parent).tolist()
    assert parent.zeros is not None
    step = 2 ** (8 - bits)
    for i in (0, 1, 63, 64, 200, 210):
        for o in range(parent.outputs):
            scale, zero = float(parent.scales[i // 64, o]), float(parent.zeros[i // 64, o])
            first = codes[i][o] // step * step
            expected = sum((code - zero) * scale for code in range(first, first + step)) / step
            assert float(numbers[i, o]) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_no_zero_points_are_those_of_the_middle() -> None:
    parent = random_parent(dtype=torch.float32)
    middle = torch.full_like(parent.scales, 128)
    for make in (narrowed, refitted):
        symmetric, spelled = (make(replace(parent, zeros=zeros), 3) for zeros in (None, middle))
        assert torch.equal(transposed_numbers(symmetric), transposed_numbers(spelled))
    assert narrowed(replace(parent, zeros=None), 8).zeros is None


@pytest.mark.parametrize("bits", range(2, 8))
def test_the_errors_of_the_study(bits: int) -> None:
    weights, parent = gaussian_parent()
    middle, fitted = error(weights, narrowed(parent, bits)), error(weights, refitted(parent, bits))
    assert middle == pytest.approx(MID_POINT[bits], rel=0.03, abs=PRINTED)
    assert fitted == pytest.approx(REFITTED[bits], rel=0.03, abs=PRINTED)
    assert fitted < middle
    assert parent.zeros is not None
    step = 2 ** (8 - bits)
    wrong = replace(narrowed(parent, bits), scales=parent.scales * step, zeros=parent.zeros / step)
    assert error(weights, wrong) == pytest.approx(TRUNCATED[bits], rel=0.03, abs=PRINTED)
    assert error(weights, wrong) > 1.25 * middle  # twice at 2 to 4 bits; at 7 the half step of 1/2 hides in the parent's own


def test_the_refit_is_least_squares() -> None:
    """numpy's line through (child's code, parent's number) of every group; a last group that is shorter included."""
    parent = random_parent(inputs=211, size=64, dtype=torch.float32)
    numbers = transposed_numbers(parent).double()
    for bits in (1, 2, 5, 7):
        child = refitted(parent, bits)
        assert child.zeros is not None
        codes = codes_of(child).double()
        for group in range(parent.groups):
            for o in range(parent.outputs):
                rows = slice(64 * group, 64 * (group + 1))
                points = torch.stack([codes[rows, o], torch.ones_like(codes[rows, o])], dim=1)
                slope, offset = torch.linalg.lstsq(points, numbers[rows, o, None]).solution[:, 0].tolist()
                assert float(child.scales[group, o]) == pytest.approx(slope, rel=1e-5)
                assert float(child.zeros[group, o]) == pytest.approx(-offset / slope, rel=1e-5, abs=1e-5)


def test_a_group_of_one_code_keeps_its_mid_point() -> None:
    codes = torch.randint(256, (96, 3), generator=torch.Generator().manual_seed(0))
    codes[32:64, 1] = torch.arange(64, 96)  # all 2 of 8 in 3 bits
    codes[64:, 2] = 200
    parent = pack(codes, 8, torch.full((3, 3), 0.5), torch.full((3, 3), 100.0), group_size=32, order="nested")
    middle, fitted = narrowed(parent, 3), refitted(parent, 3)
    assert middle.zeros is not None
    assert fitted.zeros is not None
    for name, mids, fits in (("scales", middle.scales, fitted.scales), ("zeros", middle.zeros, fitted.zeros)):
        kept = torch.zeros(3, 3, dtype=torch.bool)
        kept[1, 1] = kept[2, 2] = True
        assert torch.equal(mids == fits, kept), name
        assert bool(fits.isfinite().all()), name


@pytest.mark.parametrize("scale", [0.0, -0.25])
def test_scales_of_zero_and_below(scale: float) -> None:
    parent = random_parent(dtype=torch.float16)
    parent = replace(parent, scales=torch.full_like(parent.scales, scale))
    for child in (narrowed(parent, 2), refitted(parent, 2)):
        numbers = transposed_numbers(child)
        assert bool(numbers.isfinite().all())
        assert error(transposed_numbers(parent).double(), child) < 0.5 if scale else not numbers.any()


def test_scales_that_fp16_cannot_hold_become_fp32() -> None:
    parent = random_parent()
    large = replace(parent, scales=torch.full_like(parent.scales, 1500.0))
    both: list[Narrower] = [narrowed, refitted]
    for make in both:
        for bits, dtype in ((7, torch.float16), (4, torch.float16), (3, torch.float16), (2, torch.float32)):
            child = make(large, bits)
            assert child.scales.dtype == dtype, (make, bits)
            assert child.zeros is not None
            assert child.zeros.dtype == dtype
            assert bool(transposed_numbers(child).isfinite().all())
    assert torch.equal(narrowed(large, 2).scales, torch.full_like(parent.scales, 96000, dtype=torch.float32))


def test_the_half_step_survives_bf16() -> None:
    """z_7 = (z - 1/2) / 2 of z = 255 is 127.25: eight bits hold 127 or 127.5."""
    parent = random_parent(dtype=torch.bfloat16)
    parent = replace(parent, zeros=torch.full_like(parent.scales, 255))
    child = narrowed(parent, 7)
    assert child.scales.dtype == torch.float32
    assert child.zeros is not None
    assert torch.equal(child.zeros, torch.full_like(child.scales, 127.25))
    assert narrowed(replace(parent, zeros=torch.full_like(parent.scales, 3)), 7).scales.dtype == torch.bfloat16


@pytest.mark.parametrize("fields", [((4, 0), (4, 4)), ((2, 6), (2, 4), (2, 2), (2, 0)), FIELDS[8], nested_fields(8)], ids=str)
def test_any_fields_come_into_either_order(fields: tuple[tuple[int, int], ...]) -> None:
    """Words written for other fields, bit by bit, and repacked."""
    codes = torch.randint(256, (70, 5), generator=torch.Generator().manual_seed(0))
    words = torch.zeros(3, 8, 5, dtype=torch.int64)
    row = 0
    for width, low in fields:
        for i in range(70):
            within, slot = divmod(i % 32, 32 // width)
            words[i // 32, row + within] |= (codes[i] >> low & (2**width - 1)) << (width * slot)
        row += width
    signed = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    planes = FieldPlanes(signed, fields, 70, torch.rand(3, 5), torch.rand(3, 5), 32)
    block = pack(codes, 8, planes.scales, planes.zeros, group_size=32)
    nested = pack(codes, 8, planes.scales, planes.zeros, group_size=32, order="nested")
    for repacked, expected in ((to_block_order(planes), block), (to_nested_order(planes), nested)):
        assert torch.equal(repacked.words, expected.words)
        assert repacked.words.stride() == expected.words.stride()
        assert repacked.fields == expected.fields
        assert repacked.scales is planes.scales
        assert repacked.zeros is planes.zeros
        assert (repacked.inputs, repacked.group_size) == (70, 32)


@pytest.mark.parametrize("bits", range(1, 9))
def test_there_and_back(bits: int) -> None:
    nested = random_parent(bits)
    block = to_block_order(nested)
    assert block.words.is_contiguous()
    assert block.fields == FIELDS[bits]
    assert torch.equal(codes_of(block), codes_of(nested))
    assert torch.equal(to_nested_order(block).words, nested.words)
    assert to_block_order(block) is block
    assert to_nested_order(nested) is nested
    child = narrowed(random_parent(8), bits)
    assert torch.equal(transposed_numbers(to_block_order(child)), transposed_numbers(child))


def test_block_order_has_no_gaps() -> None:
    wide = pack(torch.randint(8, (64, 20)), 3, torch.rand(2, 20), group_size=32)
    part = FieldPlanes(wide.words[:, :, 5:12], wide.fields, 64, wide.scales[:, 5:12], None, 32)
    whole = to_block_order(part)
    assert whole.words.is_contiguous()
    assert torch.equal(transposed_numbers(whole), transposed_numbers(wide)[:, 5:12])


@pytest.mark.parametrize("make", [narrowed, refitted])
def test_what_cannot_be_narrowed(make: Narrower) -> None:
    parent = random_parent(5)
    for bits in (0, 6, -1):
        with pytest.raises(ValueError, match=f"models of 1 to 5 bits, not of {bits}"):
            make(parent, bits)
    with pytest.raises(ValueError, match="bring it to nested order first"):
        make(to_block_order(parent), 3)
