"""Every layout against a writer of its own: Python integers, one bit after another, from the description alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from bitplan.kernels.conversion import LAYOUTS, from_awq, from_gptq, from_hqq, from_packed, to_awq, to_gptq, to_hqq, to_packed
from bitplan.kernels.conversion.stream import from_stream, to_stream
from bitplan.kernels.layout import FieldPlanes, codes_of, pack
from bitplan.kernels.nested import narrowed
from bitplan.kernels.reference import transposed_numbers

Table = list[list[int]]
VERSIONS: tuple[Literal["gptq", "gptq_v2", "gptq_p"], ...] = ("gptq", "gptq_v2", "gptq_p")
EVERY = [(name, bits) for name, layout in LAYOUTS.items() for bits in layout.widths]
INPUTS, OUTPUTS, SIZE = 96, 64, 32


def matrix(
    bits: int, inputs: int = INPUTS, outputs: int = OUTPUTS, size: int | None = SIZE, *, full: bool = False
) -> FieldPlanes:
    """Random codes, or all of them the highest; whole zero points from 1 up."""
    random = torch.Generator().manual_seed(bits)
    groups = -(-inputs // (size or inputs))
    codes = torch.randint(2**bits, (inputs, outputs), generator=random)
    zeros = torch.randint(1, 2**bits, (groups, outputs), generator=random)
    if full:
        codes, zeros = torch.full_like(codes, 2**bits - 1), torch.full_like(zeros, 2**bits - 1)
    scales = (torch.rand(groups, outputs, generator=random) + 0.5).half()
    return pack(codes, bits, scales, zeros.half(), group_size=size)


def zeros_of(planes: FieldPlanes) -> Table:
    zeros = torch.full_like(planes.scales, 2 ** (planes.bits - 1)) if planes.zeros is None else planes.zeros
    return [[int(zero) for zero in row] for row in zeros]


def transposed(table: Table) -> Table:
    return [list(column) for column in zip(*table, strict=True)]


def signed(words: Table) -> Table:
    return [[word - 2**32 if word >= 2**31 else word for word in row] for row in words]


def streams(rows: Table, bits: int) -> Table:
    """Each row one long number, the first value lowest, cut into words."""
    words = []
    for row in rows:
        number = sum(value << (bits * i) for i, value in enumerate(row))
        words.append([number >> (32 * word) & 0xFFFFFFFF for word in range((len(row) * bits + 31) // 32)])
    return words


def fields(rows: Table, bits: int) -> Table:
    """Each row by blocks of 32 values: bits low, low + 1, ... of all of them in fields of 4, 2 and 1, `bits` words a block."""
    words = []
    for row in rows:
        line: list[int] = []
        for start in range(0, len(row), 32):
            low = 0
            while low < bits:
                width = next(w for w in (8, 4, 2, 1) if w <= bits - low)
                number = sum((value >> low) % 2**width << (width * i) for i, value in enumerate(row[start : start + 32]))
                line += [number >> (32 * word) & 0xFFFFFFFF for word in range(width)]
                low += width
        words.append(line)
    return words


def awq_words(rows: Table) -> Table:
    words = []
    for row in rows:
        line = []
        for start in range(0, len(row), 8):
            v = row[start : start + 8]
            line.append(int("".join(f"{value:04b}" for value in (v[7], v[5], v[3], v[1], v[6], v[4], v[2], v[0])), 2))
        words.append(line)
    return words


def written(name: str, planes: FieldPlanes) -> dict[str, list[int] | Table | list[list[float]]]:
    """What the tensors of a layout hold, as lists."""
    bits, codes, zeros = planes.bits, codes_of(planes).tolist(), zeros_of(planes)
    inputs, outputs, size = planes.inputs, planes.outputs, min(planes.group_size, planes.inputs)
    if name.startswith("gptq"):
        words = fields if name == "gptq_p" else streams
        stored = [[zero - 1 for zero in row] for row in zeros] if name == "gptq" else zeros
        return {
            "qweight": signed(transposed(words(transposed(codes), bits))),
            "qzeros": signed(words(stored, bits)),
            "scales": planes.scales.tolist(),
            "g_idx": [i // size for i in range(inputs)],
        }
    if name == "awq":
        return {"qweight": signed(awq_words(codes)), "qzeros": signed(awq_words(zeros)), "scales": planes.scales.tolist()}
    if name == "pack-quantized":
        return {
            "weight_packed": signed(streams(transposed(codes), bits)),
            "weight_scale": planes.scales.T.tolist(),
            "weight_shape": [outputs, inputs],
            "weight_zero_point": signed(transposed(streams(zeros, bits))),
        }
    rows = [[codes[start + j][o] for j in range(size)] for o in range(outputs) for start in range(0, inputs, size)]
    per = {1: 8, 2: 4, 3: 10, 4: 2}.get(bits, 1)
    step = (len(rows) + per - 1) // per
    rows += [[0] * size] * (step * per - len(rows))
    packed = [[0] * size for _ in range(step)]
    for r, row in enumerate(rows):
        for j, value in enumerate(row):
            packed[r % step][j] += value << (bits * (per - 1 - r // step))
    numbers = [
        (scale, zero) for o in range(outputs) for scale, zero in zip(planes.scales[:, o], transposed(zeros)[o], strict=True)
    ]
    return {
        "W_q": packed,
        "scale": [[float(scale)] for scale, _ in numbers],
        "zero": [[float(zero)] for _, zero in numbers],
        "shape": [outputs, inputs],
    }


def same(left: FieldPlanes, right: FieldPlanes) -> bool:
    return (
        torch.equal(codes_of(left), codes_of(right))
        and torch.equal(left.scales, right.scales)
        and torch.equal(transposed_numbers(left), transposed_numbers(right))
        and (left.fields, left.inputs, left.group_size) == (right.fields, right.inputs, right.group_size)
    )


def shapes(name: str, bits: int) -> Iterator[tuple[int, int, int | None]]:
    """(inputs, outputs, group size) that the layout can hold, the smallest among them."""
    yield INPUTS, OUTPUTS, SIZE
    yield 64, 32, None
    if name in ("gptq", "gptq_v2") and bits in (2, 4, 8):
        yield 32 // bits, 64 // bits, None
        yield 112, 48, 64  # the last block and the last group are not full
    elif name.startswith("gptq"):
        yield 160, 32, 64
    elif name == "awq":
        yield 33, 8, None
        yield 70, 24, 32
    else:
        yield 33, 8, None
        yield (64, 5, 32) if name == "pack-quantized" or bits in (3, 5, 6, 8) else (64, 4, 32)


@pytest.mark.parametrize(("name", "bits"), EVERY)
def test_the_bits_lie_where_the_layout_says(name: str, bits: int) -> None:
    for inputs, outputs, size in shapes(name, bits):
        for full in (False, True):
            planes = matrix(bits, inputs, outputs, size, full=full)
            tensors = LAYOUTS[name].write(planes)
            expected = written(name, planes)
            assert set(tensors) == set(expected)
            for part, values in expected.items():
                assert tensors[part].tolist() == values, (part, inputs, outputs, size)
                assert tensors[part].is_contiguous()
            if full:  # all bits up to the highest: the sign of int32 is one of them
                assert name == "hqq" or any(bool((tensor < 0).any()) for tensor in tensors.values())


@pytest.mark.parametrize(("name", "bits"), EVERY)
def test_what_was_written_is_read_again(name: str, bits: int) -> None:
    for inputs, outputs, size in shapes(name, bits):
        for full in (False, True):
            planes = matrix(bits, inputs, outputs, size, full=full)
            assert same(LAYOUTS[name].read(LAYOUTS[name].write(planes), bits, size), planes)


@pytest.mark.parametrize(("name", "bits"), EVERY)
def test_symmetric_matrices_store_no_zero_points_here(name: str, bits: int) -> None:
    planes = replace(matrix(bits), zeros=None)
    tensors = LAYOUTS[name].write(planes)
    assert "weight_zero_point" not in tensors
    read = LAYOUTS[name].read(tensors, bits, SIZE)
    assert read.zeros is None
    assert same(read, planes)


@pytest.mark.parametrize(("name", "bits"), EVERY)
def test_any_order_of_planes_is_written(name: str, bits: int) -> None:
    planes = matrix(bits)
    nested = pack(codes_of(planes), bits, planes.scales, planes.zeros, group_size=SIZE, order="nested")
    plain, repacked = LAYOUTS[name].write(planes), LAYOUTS[name].write(nested)
    assert all(torch.equal(plain[part], repacked[part]) for part in plain)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("version", VERSIONS)
def test_gptq_words_of_2_4_and_8_bits_are_shared(version: Literal["gptq", "gptq_v2", "gptq_p"], bits: int) -> None:
    planes = matrix(bits)
    tensors = to_gptq(planes, version)
    assert tensors["qweight"].data_ptr() == planes.words.data_ptr()
    assert tensors["scales"] is planes.scales
    read = from_gptq(tensors, bits, SIZE, version)
    assert read.words.data_ptr() == tensors["qweight"].data_ptr()
    assert read.scales is tensors["scales"]


@pytest.mark.parametrize("bits", range(2, 9))
def test_gptq_p_words_are_shared(bits: int) -> None:
    planes = matrix(bits)
    tensors = to_gptq(planes, "gptq_p")
    assert tensors["qweight"].data_ptr() == planes.words.data_ptr()
    assert from_gptq(tensors, bits, SIZE, "gptq_p").words.data_ptr() == planes.words.data_ptr()


@pytest.mark.parametrize("bits", range(1, 9))
def test_streams_of_any_length(bits: int) -> None:
    for count in (0, 1, 7, 31, 32, 33, 100):
        codes = torch.randint(2**bits, (count, 3), generator=torch.Generator().manual_seed(count), dtype=torch.uint8)
        words = to_stream(codes, bits)
        assert words.shape == (-(-count * bits // 32), 3)
        assert words.T.tolist() == signed(streams(codes.T.tolist(), bits))
        assert torch.equal(from_stream(words, bits, count), codes)


def test_the_versions_of_gptq_differ_by_one() -> None:
    """Read as the other version a matrix is off by a step: the reason why the version must be told."""
    planes = matrix(4)
    other = from_gptq(to_gptq(planes, "gptq_v2"), 4, SIZE, "gptq")
    assert planes.zeros is not None
    assert other.zeros is not None
    assert torch.equal(other.zeros, (planes.zeros + 1) % 16)


def test_the_first_version_reads_the_highest_code_as_zero_and_never_writes_it() -> None:
    planes = matrix(4)
    assert planes.zeros is not None
    zeros = planes.zeros.clone()
    zeros[2, 5] = 0
    planes = replace(planes, zeros=zeros)
    with pytest.raises(
        ValueError, match=r"gptq holds whole zero points from 1 to 15, not 0.0 \(group 2, output 5\); write gptq_v2"
    ):
        to_gptq(planes)
    tensors = to_gptq(planes, "gptq_v2")
    assert same(from_gptq(tensors, 4, SIZE, "gptq_v2"), planes)
    minus_one = [[(zero - 1) % 16 for zero in row] for row in zeros_of(planes)]
    tensors["qzeros"] = torch.tensor(signed(streams(minus_one, 4)), dtype=torch.int32)
    assert same(from_gptq(tensors, 4, SIZE, "gptq"), planes)


def test_whole_rows_are_groups_of_minus_one() -> None:
    planes = matrix(4, size=None)
    for name in ("gptq", "awq", "hqq", "pack-quantized"):
        tensors = LAYOUTS[name].write(planes)
        assert same(LAYOUTS[name].read(tensors, 4, -1), planes)
        assert same(LAYOUTS[name].read(tensors, 4, None), planes)
        with pytest.raises(ValueError, match="at least one input, not 0"):
            LAYOUTS[name].read(tensors, 4, 0)


def test_inputs_in_another_order_are_refused() -> None:
    tensors = to_gptq(matrix(4))
    assert same(from_gptq({name: tensors[name] for name in ("qweight", "qzeros", "scales")}, 4, SIZE), matrix(4))
    order = torch.randperm(INPUTS, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="act-order"):
        from_gptq({**tensors, "g_idx": tensors["g_idx"][order]}, 4, SIZE)
    with pytest.raises(ValueError, match="the group of each of 96 inputs"):
        from_gptq({**tensors, "g_idx": tensors["g_idx"][:-1]}, 4, SIZE)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "hqq"])
def test_zero_points_that_are_no_codes_are_refused(name: str) -> None:
    planes = matrix(4)
    assert planes.zeros is not None
    for zero, shown in ((2.5, "2.5"), (16, "16.0"), (-1, "-1.0"), (float("nan"), "nan")):
        zeros = planes.zeros.clone()
        zeros[1, 7] = zero
        with pytest.raises(ValueError, match=rf"whole zero points from [01] to 15, not {shown} \(group 1, output 7\)"):
            LAYOUTS[name].write(replace(planes, zeros=zeros))


def test_hqq_holds_any_zero_point() -> None:
    parent = pack(codes_of(matrix(8)), 8, matrix(8).scales, matrix(8).zeros, group_size=SIZE, order="nested")
    child = narrowed(parent, 2)
    assert child.zeros is not None
    assert bool((child.zeros != child.zeros.round()).any())
    read = from_hqq(to_hqq(child), 2, SIZE)
    assert torch.equal(transposed_numbers(read), transposed_numbers(child))
    with pytest.raises(ValueError, match="whole zero points"):
        to_gptq(child, "gptq_v2")


@pytest.mark.parametrize("name", LAYOUTS)
def test_widths_that_a_layout_lacks_are_refused(name: str) -> None:
    tensors = LAYOUTS[name].write(matrix(4))
    for bits in set(range(1, 9)) - set(LAYOUTS[name].widths):
        with pytest.raises(ValueError, match=f"no codes of {bits} bits, only of .*choose another layout"):
            LAYOUTS[name].write(matrix(bits))
        with pytest.raises(ValueError, match=f"no codes of {bits} bits"):
            LAYOUTS[name].read(tensors, bits, SIZE)
    with pytest.raises(ValueError, match="unknown version 'gptq_v3'; known: gptq, gptq_v2, gptq_p"):
        to_gptq(matrix(4), "gptq_v3")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "planes", "message"),
    [
        ("gptq", matrix(4, 97), "multiple of 8 inputs, not 97"),
        ("gptq", matrix(4, outputs=9), "multiple of 8 outputs, not 9"),
        ("gptq", matrix(3, 104), "multiple of 32 inputs, not 104"),
        ("gptq_v2", matrix(3, outputs=40), "multiple of 32 outputs, not 40"),
        ("gptq_p", matrix(4, 104), "multiple of 32 inputs, not 104"),
        ("gptq_p", matrix(5, outputs=40), "multiple of 32 outputs, not 40"),
        ("awq", matrix(4, outputs=9), "multiple of 8 outputs, not 9"),
        ("hqq", matrix(4, 97), "multiple of 32 inputs, not 97"),
        ("hqq", matrix(2, outputs=5), r"multiple of 4 groups \(of all outputs together\), not 15"),
        ("pack-quantized", matrix(4, 97), "multiple of 32 inputs, not 97"),
    ],
)
def test_sizes_that_do_not_fill_the_words_are_refused(name: str, planes: FieldPlanes, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs a {message}; choose another layout or pad the matrix"):
        LAYOUTS[name].write(planes)


@pytest.mark.parametrize("name", ["gptq", "gptq_v2", "gptq_p", "awq"])
def test_scales_of_32_bits_are_written_where_16_hold_them(name: str) -> None:
    planes = matrix(4)
    assert planes.zeros is not None
    exact = replace(planes, scales=planes.scales.float(), zeros=planes.zeros.float())
    assert LAYOUTS[name].write(exact)["scales"].dtype == torch.float16
    assert same(LAYOUTS[name].read(LAYOUTS[name].write(exact), 4, SIZE), planes)
    with pytest.raises(ValueError, match=f"{name} holds scales of 16 bits and these are fp32; round them"):
        LAYOUTS[name].write(replace(exact, scales=exact.scales / 3))
    brain = replace(planes, scales=planes.scales.bfloat16(), zeros=planes.zeros.bfloat16())
    assert same(LAYOUTS[name].read(LAYOUTS[name].write(brain), 4, SIZE), brain)


@pytest.mark.parametrize("name", LAYOUTS)
def test_tensors_that_do_not_fit_together_are_refused(name: str) -> None:
    tensors = LAYOUTS[name].write(matrix(4))
    optional = {"g_idx", "weight_zero_point"}
    for part, tensor in tensors.items():
        rest = {other: each for other, each in tensors.items() if other != part}
        if part not in optional:
            with pytest.raises(ValueError, match=f"'{part}' is missing"):
                LAYOUTS[name].read(rest, 4, SIZE)
        if tensor.dim() == 2:
            for damaged in (tensor[: len(tensor) // 2], tensor[:, : tensor.shape[1] // 2], tensor[0]):
                with pytest.raises(ValueError, match=r"do not go with|does not go with|must be|no stream of|are not"):
                    LAYOUTS[name].read({**rest, part: damaged}, 4, SIZE)
            if not tensor.is_floating_point():
                with pytest.raises(ValueError, match=f"{part} must be a matrix of torch"):
                    LAYOUTS[name].read({**rest, part: tensor.long()}, 4, SIZE)
    with pytest.raises(ValueError, match=r"group|scale"):
        LAYOUTS[name].read(tensors, 4, 2 * SIZE)


def test_gptq_rows_that_are_no_whole_blocks_are_refused() -> None:
    for version in VERSIONS:
        tensors = to_gptq(matrix(3), version)
        with pytest.raises(ValueError, match="8 rows of qweight are no whole blocks of 3"):
            from_gptq({**tensors, "qweight": tensors["qweight"][:-1]}, 3, SIZE, version)


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_words_with_gaps_are_told_from_streams(bits: int) -> None:
    """As compressed-tensors packed until 0.17: floor(32 / bits) values a word."""
    tensors = to_packed(matrix(bits))
    old = -(-INPUTS // (32 // bits))
    with pytest.raises(ValueError, match=r"packed with gaps by a version before 0\.18; save it with a newer one"):
        from_packed({**tensors, "weight_packed": torch.zeros(OUTPUTS, old, dtype=torch.int32)}, bits, SIZE)
    with pytest.raises(ValueError, match="is the width another"):
        from_packed({**tensors, "weight_packed": torch.zeros(OUTPUTS, old + 1, dtype=torch.int32)}, bits, SIZE)


def test_awq_reads_words_put_together_by_hand() -> None:
    """0x75316420: the digits of the order itself, so output j of eight has code j."""
    tensors = {
        "qweight": torch.full((32, 1), 0x75316420, dtype=torch.int32),
        "qzeros": torch.tensor([[0x75316420]], dtype=torch.int32),
        "scales": torch.ones(1, 8, dtype=torch.float16),
    }
    planes = from_awq(tensors, 4, 32)
    assert torch.equal(codes_of(planes), torch.arange(8, dtype=torch.uint8).expand(32, 8))
    assert planes.zeros is not None
    assert planes.zeros.tolist() == [list(range(8))]
    assert not transposed_numbers(planes).any()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in to_awq(planes).items())


def read_by_formula(tensors: dict[str, Tensor], bits: int) -> Tensor:
    """GPTQ's own rule, entry by entry: (bits of the stream - (stored zero + 1)) * scale of the input's group."""
    words = [[word % 2**32 for word in row] for row in tensors["qweight"].T.tolist()]
    numbers = [sum(word << (32 * i) for i, word in enumerate(column)) for column in words]
    zeros = [sum(word % 2**32 << (32 * i) for i, word in enumerate(row)) for row in tensors["qzeros"].tolist()]
    group = tensors["g_idx"].tolist()
    return (
        torch.tensor(
            [
                [
                    (number >> (bits * i) & 2**bits - 1) - ((zeros[group[i]] >> (bits * o) & 2**bits - 1) + 1)
                    for o, number in enumerate(numbers)
                ]
                for i in range(len(group))
            ]
        )
        * tensors["scales"].float()[tensors["g_idx"].long()]
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_reader_of_gptq_gets_the_same_numbers(bits: int) -> None:
    planes = matrix(bits)
    assert torch.equal(read_by_formula(to_gptq(planes), bits), transposed_numbers(planes))
