from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from bitplan.kernels.formats import parse
from bitplan.kernels.layout import codes_of, nested_fields, opened, pack
from bitplan.kernels.mixed import GroupMixed, pack_groups, stack_experts
from bitplan.kernels.packing import FIELDS, PackedWeight, pack_weight
from bitplan.kernels.product import matmul
from bitplan.kernels.reference import dequantize, group_mixed_numbers, transposed_numbers
from matrices import apart, exact_product, experts_of, mixed_of, numbers_by_loops, random_planes

INPUTS = (1, 31, 32, 33, 100, 257)
OUTPUTS = (1, 5, 64, 77)
TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 1.2e-2, torch.float32: 1e-6}


def filled(inputs: int, outputs: int, bits: int, how: str) -> Tensor:
    if how == "random":
        return torch.randint(2**bits, (inputs, outputs), generator=torch.Generator().manual_seed(bits))
    return torch.full((inputs, outputs), 0 if how == "zeros" else 2**bits - 1)


@pytest.mark.parametrize("order", ["block", "nested"])
@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_come_back_in_either_order(bits: int, order: Literal["block", "nested"]) -> None:
    for inputs, outputs, how in itertools.product(INPUTS, OUTPUTS, ("zeros", "full", "random")):
        codes = filled(inputs, outputs, bits, how)
        planes = pack(codes, bits, torch.ones(1, outputs), order=order)
        assert torch.equal(codes_of(planes).long(), codes)
        blocks = -(-inputs // 32)
        assert planes.words.shape == (blocks, bits, outputs)
        assert (planes.bits, planes.inputs, planes.outputs, planes.groups) == (bits, inputs, outputs, 1)
        assert planes.fields == (FIELDS[bits] if order == "block" else nested_fields(bits))
        assert planes.stored_bytes == 4 * blocks * bits * outputs + 4 * outputs


@pytest.mark.parametrize("bits", range(1, 9))
def test_nested_planes_lie_one_after_another_the_highest_first(bits: int) -> None:
    """The storage from end to end: word (plane, block, out) has bit j from bit bits - 1 - plane of code 32 block + j."""
    inputs, outputs = 70, 5
    codes = filled(inputs, outputs, bits, "random")
    words = pack(codes, bits, torch.ones(1, outputs), order="nested").words
    stored = torch.tensor([], dtype=torch.int32).set_(words.untyped_storage())
    expected = []
    for plane, block, output in itertools.product(range(bits), range(3), range(outputs)):
        inside = codes[32 * block : 32 * (block + 1), output].tolist()
        word = sum((code >> (bits - 1 - plane) & 1) << j for j, code in enumerate(inside))
        expected.append(word - 2**32 if word >= 2**31 else word)
    assert stored.tolist() == expected


def test_one_group_is_the_default() -> None:
    planes = pack(filled(70, 3, 4, "random"), 4, torch.ones(1, 3))
    assert planes.group_size == 70
    empty = pack(torch.zeros(0, 3, dtype=torch.int64), 4, torch.ones(0, 3))
    assert (empty.inputs, empty.group_size, empty.groups) == (0, 1, 0)
    assert codes_of(empty).shape == (0, 3)


def test_what_pack_refuses() -> None:
    codes, scales = filled(64, 3, 4, "random"), torch.ones(2, 3)
    for wrong in (codes.float(), codes[0]):
        with pytest.raises(ValueError, match=r"integers of shape \(in, out\)"):
            pack(wrong, 4, scales, group_size=32)
    with pytest.raises(ValueError, match="unknown order 'plane' of planes; known: block, nested"):
        pack(codes, 4, scales, group_size=32, order="plane")  # type: ignore[arg-type]
    for order in ("block", "nested"):
        with pytest.raises(ValueError, match=r"outside \[0, 8\)"):
            pack(filled(64, 3, 4, "full"), 3, scales, group_size=32, order=order)
        with pytest.raises(ValueError, match=r"must be \(groups, out\) = \(2, 3\)"):
            pack(codes, 4, torch.ones(1, 3), group_size=32, order=order)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"words": torch.zeros(2, 4, 3, dtype=torch.int32)},
            r"70 inputs in 4 bits need int32 words of shape \(3, 4, out\), not .*damaged",
        ),
        ({"words": torch.zeros(3, 3, 3, dtype=torch.int32)}, r"not torch.int32 \(3, 3, 3\): the buffer is damaged or of another"),
        ({"words": torch.zeros(3, 12, dtype=torch.int32)}, "damaged or of another width"),
        ({"words": torch.zeros(3, 4, 3, dtype=torch.int64)}, r"not torch.int64 \(3, 4, 3\)"),
        ({"words": torch.zeros(3, 3, 4, dtype=torch.int32).mT}, "side by side; make the words contiguous"),
        ({"words": torch.zeros(3, 4, 6, dtype=torch.int32)[:, :, ::2]}, "side by side"),
        ({"fields": FIELDS[3]}, "70 inputs in 3 bits"),
        ({"inputs": 97}, r"97 inputs in 4 bits need int32 words of shape \(4, 4, out\)"),
        ({"inputs": 64}, r"of shape \(2, 4, out\)"),
        ({"group_size": 0}, "a group of 0 inputs"),
        ({"group_size": -1}, "a group of -1 inputs"),
        ({"group_size": 48}, "a group of 48 inputs is not a multiple of 32"),
        ({"group_size": 64}, r"scales must be \(groups, out\) = \(2, 3\)"),
        ({"scales": torch.ones(3, 4)}, r"scales must be .* not torch.float32 \(3, 4\)"),
        ({"scales": torch.ones(3, 3, dtype=torch.float64)}, "scales must be .* in fp16, bf16 or fp32"),
        ({"scales": torch.ones(3, 3, dtype=torch.int32)}, "scales must be"),
        ({"zeros": torch.ones(1, 3)}, r"zeros must be \(groups, out\) = \(3, 3\)"),
        ({"zeros": torch.ones(3, 3, dtype=torch.float16)}, "both alike"),
        ({"zeros": torch.ones(3, 3, device="meta")}, "words are on cpu and zeros on meta; move them to one device"),
    ],
)
def test_planes_that_do_not_fit_together_are_refused(changes: dict[str, object], message: str) -> None:
    whole = pack(filled(70, 3, 4, "random"), 4, torch.ones(3, 3), torch.ones(3, 3), group_size=32)
    with pytest.raises(ValueError, match=message):
        replace(whole, **changes)  # type: ignore[arg-type]


def test_a_group_may_be_longer_than_a_row() -> None:
    planes = pack(filled(70, 3, 4, "random"), 4, torch.rand(1, 3), group_size=100)
    assert torch.equal(transposed_numbers(planes), transposed_numbers(replace(planes, group_size=70)))


@pytest.mark.parametrize(
    "name", ["int2-g32", "int3-g64-asym", "int4-row", "int5-row-asym", "int6-g128", "int7-g32-asym", "int8-row"]
)
def test_an_opened_weight_is_the_stored_one(name: str) -> None:
    fmt = parse(name)
    for outputs, inputs in ((1, 1), (5, 33), (77, 211)):
        groups = fmt.groups(inputs)
        random = torch.Generator().manual_seed(outputs)
        zeros = None if fmt.symmetric else torch.randint(2**fmt.bits, (groups, outputs), generator=random, dtype=torch.uint8)
        scales = torch.rand(groups, outputs, generator=random)
        stored = pack_weight(fmt, (outputs, inputs), filled(inputs, outputs, fmt.bits, "random"), scales, zeros)
        planes = opened(stored)
        assert torch.equal(transposed_numbers(planes), dequantize(stored).T)
        assert torch.equal(dequantize(stored), torch.tensor(numbers_by_loops(planes)))
        assert planes.words is stored.words
        assert planes.scales is stored.scales
        assert (planes.zeros is None) == fmt.symmetric


def test_planes_of_a_cut_weight() -> None:
    """Outputs 32 to 64 share the whole matrix's words: a view whose blocks are further apart than its rows are long."""
    weight = pack_weight(
        parse("int5-g32-asym"),
        (77, 70),
        filled(70, 77, 5, "random"),
        torch.rand(3, 77),
        torch.randint(32, (3, 77), generator=torch.Generator().manual_seed(0), dtype=torch.uint8),
    )
    part: PackedWeight = weight.outputs(32, 64)
    assert torch.equal(transposed_numbers(opened(part)), transposed_numbers(opened(weight))[:, 32:64])


def test_planes_move_as_one() -> None:
    planes = random_planes(3, (5, 70), 32, seed=1)
    moved = planes.to("meta")
    assert {moved.words.device.type, moved.scales.device.type} == {"meta"}
    assert moved.zeros is not None
    assert moved.zeros.device.type == "meta"
    assert replace(planes, zeros=None).to("meta").zeros is None


# --- mixed groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [[4], [2, 4], [4, 2, 4, 2], [8, 2, 3, 3, 2, 8, 2], [1, 1, 1], [7, 5, 6]], ids=str)
def test_groups_of_several_widths(bits: list[int]) -> None:
    mixed, numbers = mixed_of(bits)
    assert (mixed.inputs, mixed.outputs) == (32 * len(bits), 5)
    assert [planes.bits for planes, _ in mixed.classes] == sorted(set(bits))
    assert sum(planes.bits * planes.groups for planes, _ in mixed.classes) == sum(bits)
    assert sum(planes.words.numel() for planes, _ in mixed.classes) == 5 * sum(bits)
    assert apart(group_mixed_numbers(mixed).T, torch.tensor(numbers, dtype=torch.float64)) < 1e-6
    x = torch.randn(3, mixed.inputs, generator=torch.Generator().manual_seed(0))
    assert apart(matmul(x, mixed, backend="torch"), exact_product(x, numbers)) < 1e-6


def test_groups_of_one_width_are_a_plain_matrix() -> None:
    planes = random_planes(3, (5, 128), 32, seed=1)
    mixed = pack_groups(codes_of(planes), [3, 3, 3, 3], planes.scales, planes.zeros, 32)
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(matmul(x, mixed, backend="torch"), matmul(x, planes, backend="torch"))


def test_what_groups_of_several_widths_refuse() -> None:
    mixed, _ = mixed_of([2, 4, 2, 4])
    (two, at), (four, beside) = mixed.classes
    with pytest.raises(ValueError, match="1 to 3 widths, not 0"):
        GroupMixed(())
    with pytest.raises(ValueError, match="1 to 3 widths, not 4"):
        mixed_of([2, 3, 4, 5])
    for classes in (
        ((two, at), (random_planes(4, (6, 64), 32), beside)),
        ((two, at), (random_planes(4, (5, 128), 64), beside)),
        ((two, at), (four, beside.long())),
        ((two, at), (four, beside[:1])),
    ):
        with pytest.raises(ValueError, match="differ in outputs or group size, or a group lacks its number"):
            GroupMixed(classes)
    for numbers in ([1, 2], [1, 1], [1, 4], [-1, 3]):
        with pytest.raises(ValueError, match="in exactly one class"):
            GroupMixed(((two, at), (four, torch.tensor(numbers, dtype=torch.int32))))
    short = random_planes(2, (5, 40), 32)
    with pytest.raises(ValueError, match="a class of 2 groups of 32 inputs holds 40 inputs"):
        GroupMixed(((short, torch.arange(2, dtype=torch.int32)),))
    with pytest.raises(ValueError, match="0 groups of 32 inputs are not 0 inputs"):
        pack_groups(torch.zeros(0, 5, dtype=torch.uint8), [], torch.ones(0, 5), None, 32)
    with pytest.raises(ValueError, match="2 groups of 32 inputs are not 70 inputs"):
        pack_groups(filled(70, 5, 2, "random"), [2, 2], torch.ones(2, 5), None, 32)


# --- experts --------------------------------------------------------------------------------------------------------------


def test_experts_of_several_widths_in_one_buffer() -> None:
    each = experts_of([4, 1, 8, 3, 4])
    stack = stack_experts(each)
    assert (stack.experts, stack.outputs, stack.inputs, stack.widths) == (5, 5, 70, (1, 3, 4, 8))
    assert stack.words.numel() == 3 * 5 * (4 + 1 + 8 + 3 + 4)
    assert stack.stored_bytes == 4 * stack.words.numel() + 4 * 2 * 5 * 3 * 5
    for index, planes in enumerate(each):
        alone = stack.expert(index)
        assert torch.equal(alone.words, planes.words)
        assert alone.words.untyped_storage().data_ptr() == stack.words.untyped_storage().data_ptr()
        assert torch.equal(transposed_numbers(alone), transposed_numbers(planes))
    assert stack_experts([replace(planes, zeros=None) for planes in each]).zeros is None


def test_what_experts_refuse() -> None:
    each = experts_of([4, 2])
    nested = pack(codes_of(each[1]), 2, each[1].scales, each[1].zeros, group_size=32, order="nested")
    with pytest.raises(ValueError, match="expert 1 is not in block order"):
        stack_experts([each[0], nested])
    for other in (random_planes(4, (6, 70), 32), random_planes(4, (5, 71), 32)):
        with pytest.raises(ValueError, match="expert 1 differs from the first in shape"):
            stack_experts([each[0], other])
    with pytest.raises(ValueError, match=r"groups of 96 inputs cannot be cut into groups of 64"):
        stack_experts([random_planes(4, (5, 192), 64), random_planes(4, (5, 192), 96)])
    with pytest.raises(ValueError, match=r"expert 1 has scales in torch\.float16, the first in torch\.float32; cast them"):
        stack_experts([each[0], random_planes(4, (5, 70), 32, torch.float16)])
    with pytest.raises(ValueError, match="there is no expert to stack"):
        stack_experts([])
    stack = stack_experts(each)
    for words in (stack.words.long(), stack.words.view(-1, 5), stack.words[::2]):
        with pytest.raises(ValueError, match="one flat int32 buffer"):
            replace(stack, words=words)
    with pytest.raises(ValueError, match="2 experts need as many bases and widths"):
        replace(stack, base=stack.base[:1])
    with pytest.raises(ValueError, match="2 experts need as many bases and widths"):
        replace(stack, bits=stack.bits[:1])
    with pytest.raises(ValueError, match=r"widths int32, not torch\.int64 and torch\.int64"):
        replace(stack, bits=stack.bits.long())
    assert stack.zeros is not None
    with pytest.raises(ValueError, match=r"must be \(experts, groups, out\), both alike"):
        replace(stack, zeros=stack.zeros[:1])
    with pytest.raises(ValueError, match=r"widths \(2, 8\) are not those of the experts, \[2, 4\]"):
        replace(stack, widths=(2, 8))
    for base in ([0, len(stack.words) - 1], [-1, 0]):
        with pytest.raises(ValueError, match="lie outside the buffer"):
            replace(stack, base=torch.tensor(base))


def test_experts_with_groups_of_several_sizes() -> None:
    """Scales of the larger groups are repeated; the numbers stay what they were."""
    each = [random_planes(4, (5, 150), size, seed=size) for size in (64, 32, 128, 150, 192)]
    stack = stack_experts(each)
    assert stack.group_size == 32
    for index, planes in enumerate(each):
        assert torch.equal(transposed_numbers(stack.expert(index)), transposed_numbers(planes))
    rows = stack_experts([random_planes(4, (5, 40), 64, seed=1), random_planes(3, (5, 40), 40, seed=2)])
    assert rows.scales.shape == (2, 1, 5)
