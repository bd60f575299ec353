from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitplan.kernels.formats import parse
from bitplan.kernels.packing import FIELDS, pack, pack_weight, unpack, unpack_zeros

INPUTS = (1, 31, 32, 33, 100, 257)
OUTPUTS = (1, 5, 64, 77)


def random_codes(inputs: int, outputs: int, bits: int, seed: int = 0) -> Tensor:
    return torch.randint(2**bits, (inputs, outputs), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def written_bit_by_bit(codes: Tensor, bits: int) -> list[list[list[int]]]:
    """The layout drawn in packing.py, from its words alone: every bit of every code is put where the drawing says.

    A field takes 8, 4, 2 or 1 bits, as many as still fit, from the lowest up; its rows follow those of the field before.
    """
    rows = [[int(code) for code in row] for row in codes]
    inputs, outputs = len(rows), len(rows[0])
    blocks = (inputs + 31) // 32
    words = [[[0] * outputs for _ in range(bits)] for _ in range(blocks)]
    for i in range(inputs):
        block, value = divmod(i, 32)
        low = row = 0
        while low < bits:
            width = next(w for w in (8, 4, 2, 1) if w <= bits - low)
            below, slot = divmod(value, 32 // width)
            for bit in range(width):
                for o in range(outputs):
                    words[block][row + below][o] |= (rows[i][o] >> (low + bit) & 1) << (width * slot + bit)
            low += width
            row += width
    return [[[w - 2**32 if w >= 2**31 else w for w in line] for line in plane] for plane in words]


@pytest.mark.parametrize("bits", FIELDS)
def test_unpacking_undoes_packing(bits: int) -> None:
    for inputs, outputs in itertools.product(INPUTS, OUTPUTS):
        codes = random_codes(inputs, outputs, bits)
        words = pack(codes, bits)
        assert words.dtype == torch.int32
        assert words.shape == (-(-inputs // 32), bits, outputs)
        assert words.is_contiguous()
        assert torch.equal(unpack(words, FIELDS[bits], inputs), codes.int())


@pytest.mark.parametrize("bits", FIELDS)
def test_the_words_are_those_of_a_plain_bit_writer(bits: int) -> None:
    for inputs in INPUTS:
        codes = random_codes(inputs, 5, bits, seed=inputs)
        assert pack(codes, bits).tolist() == written_bit_by_bit(codes, bits)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_powers_of_two_are_ordinary_gptq_words(bits: int) -> None:
    """GPTQ's own packing of 2, 4 and 8 bits: consecutive inputs in one word, the first lowest."""
    codes, per = random_codes(96, 7, bits), 32 // bits
    words = torch.zeros(96 // per, 7, dtype=torch.int64)
    for i in range(96):
        words[i // per] |= codes[i].long() << (bits * (i % per))
    assert torch.equal(pack(codes, bits).view(-1, 7).long() & 0xFFFFFFFF, words)


@pytest.mark.parametrize("bits", FIELDS)
def test_the_sign_bit_is_a_bit_like_any_other(bits: int) -> None:
    full = torch.full((32, 3), 2**bits - 1)
    assert torch.equal(pack(full, bits), torch.full((1, bits, 3), -1, dtype=torch.int32))
    last = torch.zeros(32, 1, dtype=torch.int64)
    last[31] = 2**bits - 1  # of every field, the last slot of the last row, top bit included
    words = pack(last, bits)
    assert int(words.min()) < 0
    assert torch.equal(unpack(words, FIELDS[bits], 32).long(), last)
    assert not pack(torch.zeros(33, 2, dtype=torch.int64), bits).any()


@pytest.mark.parametrize("bits", FIELDS)
def test_padding_is_code_zero(bits: int) -> None:
    full = torch.full((33, 2), 2**bits - 1)
    assert torch.equal(unpack(pack(full, bits), FIELDS[bits], 64)[33:], torch.zeros(31, 2, dtype=torch.int32))


@given(st.integers(1, 8), st.integers(0, 70), st.integers(1, 9), st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_any_shape_comes_back(bits: int, inputs: int, outputs: int, seed: int) -> None:
    codes = random_codes(inputs, outputs, bits, seed)
    assert torch.equal(unpack(pack(codes, bits), FIELDS[bits], inputs), codes.int())


@pytest.mark.parametrize("bits", [0, 9, 32])
def test_widths_that_do_not_exist_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="widths are 1 to 8"):
        pack(torch.zeros(32, 1, dtype=torch.int64), bits)


@pytest.mark.parametrize("code", [-1, 8, 300])
def test_codes_out_of_range_are_refused(code: int) -> None:
    codes = torch.zeros(40, 2, dtype=torch.int64)
    codes[37, 1] = code
    with pytest.raises(ValueError, match=r"outside \[0, 8\)"):
        pack(codes, 3)


@pytest.mark.parametrize("bits", range(2, 9))
def test_zero_points_come_back(bits: int) -> None:
    fmt = parse(f"int{bits}-g32-asym")
    for outputs in OUTPUTS:
        zeros = random_codes(3, outputs, bits, seed=1)
        weight = pack_weight(fmt, (outputs, 70), random_codes(70, outputs, bits), torch.ones(3, outputs), zeros)
        unpacked = unpack_zeros(weight)
        assert unpacked is not None
        assert torch.equal(unpacked, zeros.int())
        assert list(weight.tensors()) == ["words", "scales", "zeros"]
        assert weight.scales.dtype == torch.float16


def test_a_symmetric_weight_has_no_zero_points() -> None:
    weight = pack_weight(parse("int4-row"), (5, 33), random_codes(33, 5, 4), torch.ones(1, 5), None)
    assert unpack_zeros(weight) is None
    assert list(weight.tensors()) == ["words", "scales"]


def test_pieces_that_do_not_fit_together_are_refused() -> None:
    codes, scales, zeros = random_codes(70, 5, 4), torch.ones(3, 5), torch.zeros(3, 5, dtype=torch.uint8)
    with pytest.raises(ValueError, match="do not make"):
        pack_weight(parse("int4-g32"), (5, 71), codes, scales, None)
    with pytest.raises(ValueError, match="do not make"):
        pack_weight(parse("int4-g64"), (5, 70), codes, scales, None)
    with pytest.raises(ValueError, match="has no zero points"):
        pack_weight(parse("int4-g32"), (5, 70), codes, scales, zeros)
    with pytest.raises(ValueError, match="needs zero points"):
        pack_weight(parse("int4-g32-asym"), (5, 70), codes, scales, None)


@pytest.mark.parametrize("name", ["int3-g32", "int5-g32-asym"])
def test_a_matrix_can_be_cut_at_multiples_of_32_outputs(name: str) -> None:
    fmt = parse(name)
    zeros = None if fmt.symmetric else random_codes(3, 77, fmt.bits, seed=1)
    scales = torch.rand(3, 77).half()
    codes = random_codes(70, 77, fmt.bits)
    whole = pack_weight(fmt, (77, 70), codes, scales, zeros)
    for start, stop in ((0, 32), (32, 64), (64, 96), (32, 77), (0, 5)):
        part = whole.outputs(start, stop)
        rows = slice(start, stop)
        cut = None if zeros is None else zeros[:, rows]
        expected = pack_weight(fmt, (min(stop, 77) - start, 70), codes[:, rows], scales[:, rows], cut)
        assert part.shape == expected.shape
        assert torch.equal(unpack(part.words, FIELDS[fmt.bits], 70), unpack(expected.words, FIELDS[fmt.bits], 70))
        assert torch.equal(part.scales, expected.scales)
        found, wanted = unpack_zeros(part), unpack_zeros(expected)
        assert (found is None and wanted is None) or (found is not None and wanted is not None and torch.equal(found, wanted))
    with pytest.raises(ValueError, match="multiples of 32 outputs, not at 8"):
        whole.outputs(8, 40)
