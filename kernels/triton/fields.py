"""Codes out of packed words, on the device.

    code[k, n] = sum over fields (width, low) of ((words[k / 32, row, n] >> width * j) & (2^width - 1)) << low
    row = the field's first row + (k % 32) / per,        j = k % per,        per = 32 / width

A program unpacks BK inputs by BN outputs. Each word is loaded once and spread over its `per` values by a broadcast shift and a
reshape: a pointer for each value costs the compiler's address arithmetic, and three times the shared memory.

Fields are compile-time tuples of (width, low, first row). The order of the planes in memory is all in two strides, in words:
`stride_block` between blocks of 32 inputs, `stride_row` between the rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from ..formats import WORD_VALUES
from ..layout import Fields

jit: Callable[[Callable[..., Any]], Any] = triton.jit
BLOCK = tl.constexpr(WORD_VALUES)

PlacedFields = tuple[tuple[int, int, int], ...]


def placed(fields: Fields) -> PlacedFields:
    """Each field with the first of its rows."""
    rows = [sum(width for width, _ in fields[:index]) for index in range(len(fields))]
    return tuple((width, low, row) for (width, low), row in zip(fields, rows, strict=True))


@jit
def _field(
    words_ptr: tl.tensor,
    block: tl.tensor,
    blocks: tl.tensor,
    columns: tl.tensor,
    inside: tl.tensor,
    stride_block: tl.tensor,
    stride_row: tl.tensor,
    WIDTH: tl.constexpr,
    LOW: tl.constexpr,
    ROW: tl.constexpr,
    BK: tl.constexpr,
) -> tl.tensor:
    rows = tl.arange(0, BK // BLOCK * WIDTH)
    # Blocks beyond the last are read from the last: the activations there are zero, so that no word needs a mask of its own.
    ahead = tl.minimum(rows // WIDTH, blocks - 1 - block)
    first_ptr = words_ptr + tl.cast(block, tl.int64) * stride_block + tl.cast(stride_row, tl.int64) * ROW
    offsets = ahead * stride_block + rows % WIDTH * stride_row
    words = tl.load(
        first_ptr + (offsets[:, None] + columns[None, :]), mask=inside[None, :], other=0, eviction_policy="evict_first"
    )
    shifts = tl.arange(0, BLOCK // WIDTH) * WIDTH
    values = (words[:, None, :] >> shifts[None, :, None]) & (2**WIDTH - 1)
    return tl.reshape(values, (BK, columns.shape[0])) << LOW


@jit
def codes(
    words_ptr: tl.tensor,
    start: tl.tensor,
    inputs: tl.tensor,
    columns: tl.tensor,
    inside: tl.tensor,
    stride_block: tl.tensor,
    stride_row: tl.tensor,
    FIELDS: tl.constexpr,
    BK: tl.constexpr,
) -> tl.tensor:
    """Codes of inputs `start` .. `start + BK - 1` at `columns` (BN,): int32 (BK, BN); anything beyond `inputs` and outside
    `inside` (BN,). `start` is a multiple of 32 and less than `inputs`."""
    block = start // BLOCK
    blocks = (inputs + BLOCK - 1) // BLOCK
    code = _field(
        words_ptr,
        block,
        blocks,
        columns,
        inside,
        stride_block,
        stride_row,
        FIELDS[0][0],
        FIELDS[0][1],
        FIELDS[0][2],
        BK,
    )
    for index in tl.static_range(1, len(FIELDS)):
        code |= _field(
            words_ptr,
            block,
            blocks,
            columns,
            inside,
            stride_block,
            stride_row,
            FIELDS[index][0],
            FIELDS[index][1],
            FIELDS[index][2],
            BK,
        )
    return code


@jit
def scale_and_zero(
    scales_ptr: tl.tensor,
    zeros_ptr: tl.tensor,
    group: tl.tensor,
    outputs: tl.tensor,
    columns: tl.tensor,
    inside: tl.tensor,
    ZERO: tl.constexpr,
) -> tl.tensor:
    """The scale and the zero point of one group at `columns`: two of float32 (BN,). ZERO is the zero point of every group, or
    None where `zeros_ptr` (groups, outputs) holds them."""
    place = tl.cast(group, tl.int64) * outputs + columns
    scale = tl.load(scales_ptr + place, mask=inside, other=0).to(tl.float32)
    if ZERO is None:
        zero = tl.load(zeros_ptr + place, mask=inside, other=0).to(tl.float32)
    else:
        zero = tl.full(scale.shape, ZERO, tl.float32)
    return scale, zero


@jit
def source(numbers_ptr: tl.tensor, start: tl.tensor, group_size: tl.tensor, PERMUTED: tl.constexpr) -> tl.tensor:
    """Where in a row of activations the input that is stored as `start` stands: there, or, PERMUTED, within the group whose
    number is at `numbers_ptr`."""
    return tl.load(numbers_ptr + start // group_size) * group_size + start % group_size if PERMUTED else start
