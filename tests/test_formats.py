from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitplan.kernels.formats import FLOAT_BITS, FORMATS, Format, parse
from bitplan.kernels.packing import pack_weight

SHAPES = [(1, 1), (1, 33), (5, 31), (33, 32), (64, 64), (77, 100), (2, 257), (130, 129)]
TORCH = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
INTS = [name for name, fmt in FORMATS.items() if fmt.family == "int"]


def bytes_held(fmt: Format, shape: tuple[int, int]) -> dict[str, int]:
    """Pack a matrix of ones and weigh each of its tensors."""
    outputs, inputs = shape
    groups = 1 if fmt.group_size is None else len(range(0, inputs, fmt.group_size))
    zeros = None if fmt.symmetric else torch.ones(groups, outputs, dtype=torch.uint8)
    packed = pack_weight(fmt, shape, torch.ones(inputs, outputs, dtype=torch.uint8), torch.ones(groups, outputs), zeros)
    names = {"words": "codes", "scales": "scales", "zeros": "zeros"}
    held = {names[name]: len(tensor.numpy().tobytes()) for name, tensor in packed.tensors().items()}
    assert packed.stored_bytes == sum(held.values())
    return {"zeros": 0, **held}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bytes_are_those_of_the_packed_tensors(shape: tuple[int, int]) -> None:
    for name in INTS:
        held = bytes_held(FORMATS[name], shape)
        assert FORMATS[name].parts_bytes(shape) == held, name
        assert FORMATS[name].stored_bytes(shape) == sum(held.values()), name


@given(st.integers(1, 8), st.sampled_from([32, 64, 96, 128, 1024, None]), st.booleans(), st.integers(1, 200), st.integers(1, 300))
@settings(deadline=None, max_examples=60)
def test_the_bytes_of_any_width_group_and_shape(
    bits: int, group_size: int | None, symmetric: bool, outputs: int, inputs: int
) -> None:
    fmt = Format("int", bits, group_size, symmetric)
    shape = (outputs, inputs)
    assert fmt.parts_bytes(shape) == bytes_held(fmt, shape)
    assert fmt.bits_per_weight(shape) * outputs * inputs == pytest.approx(8 * fmt.stored_bytes(shape))
    assert fmt.bits_per_weight(shape) > bits


@pytest.mark.parametrize("name", FLOAT_BITS)
def test_a_float_format_is_its_dtype(name: str) -> None:
    assert FORMATS[name].parts_bytes((7, 5)) == {"codes": torch.zeros(7, 5, dtype=TORCH[name]).nbytes, "scales": 0, "zeros": 0}
    assert FORMATS[name].bits_per_weight((7, 5)) == FLOAT_BITS[name]


def test_bytes_worked_out_by_hand() -> None:
    """(5, 33) at 3 bits: two blocks of 3 words a row; two fp16 scales a row; two columns of one block of zero points."""
    assert parse("int3-g32-asym").parts_bytes((5, 33)) == {"codes": 4 * 3 * 2 * 5, "scales": 2 * 2 * 5, "zeros": 4 * 3 * 1 * 2}
    assert parse("int3-row").parts_bytes((5, 33)) == {"codes": 120, "scales": 10, "zeros": 0}
    assert parse("int4-g128").bits_per_weight((128, 1024)) == 4 + 16 / 128


def test_names_parse_back_and_follow_from_the_fields() -> None:
    for name, fmt in FORMATS.items():
        assert parse(name) == fmt
        assert fmt.name == name
    assert len(set(FORMATS.values())) == len(FORMATS)
    assert Format("int", 4, 128).name == "int4-g128"
    assert Format("int", 3, None, symmetric=False).name == "int3-row-asym"


@pytest.mark.parametrize("name", ["int9-g64", "int4", "int4-g128-sym", "", "FP16"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(KeyError, match=r"unknown format .*int4-g128.*"):
        parse(name)


@pytest.mark.parametrize(("inputs", "groups"), [(0, 0), (1, 1), (63, 1), (64, 1), (65, 2), (128, 2), (129, 3)])
def test_the_last_group_may_be_short(inputs: int, groups: int) -> None:
    assert parse("int4-g64").groups(inputs) == groups
    assert parse("int4-row").groups(inputs) == min(inputs, 1)


@pytest.mark.parametrize("suffix", ["g32", "g64-asym", "row"])
def test_one_bit_more_costs_more(suffix: str) -> None:
    sizes = [parse(f"int{bits}-{suffix}").stored_bytes((33, 100)) for bits in range(2, 9)]
    assert sizes == sorted(set(sizes))
