"""One to four rows of activations times a packed matrix.

    y[m, n] = sum over groups g of scale[g, n] * (sum of x[m, k] * code[k, n] - zero[g, n] * sum of x[m, k], both over k in g)

in float32 from the first step to the last. For float32 activations (SINGLE) the zero is taken from each code instead: sums of
codes and of zeros that nearly cancel lose more than float32's own accuracy. Programs share out the outputs and the inputs
(`split`).
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..layout import FieldPlanes
from . import running
from .arguments import packed_arguments, packed_constants
from .configs import Choice
from .fields import codes, jit, scale_and_zero, source
from .running import keep, split_product


@jit
def _row(
    x_ptr: tl.tensor,
    k: tl.tensor,
    left: tl.tensor,
    code: tl.tensor,
    scale: tl.tensor,
    zero: tl.tensor,
    SINGLE: tl.constexpr,
) -> tl.tensor:
    x = tl.load(x_ptr + k, mask=k < left, other=0, eviction_policy="evict_last")
    total = tl.sum(x[:, None] * code, 0)
    if not SINGLE:
        total -= zero * tl.sum(x, 0)
    return scale * total


@jit
def gemv_steps(
    y0: tl.tensor,
    y1: tl.tensor,
    y2: tl.tensor,
    y3: tl.tensor,
    x_ptr: tl.tensor,
    x_stride: tl.tensor,
    words_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    zeros_ptr: tl.tensor,
    numbers_ptr: tl.tensor,
    inputs: tl.tensor,
    outputs: tl.tensor,
    group_size: tl.tensor,
    stride_block: tl.tensor,
    stride_row: tl.tensor,
    columns: tl.tensor,
    inside: tl.tensor,
    FIELDS: tl.constexpr,
    ZERO: tl.constexpr,
    PERMUTED: tl.constexpr,
    ROWS: tl.constexpr,
    SINGLE: tl.constexpr,
    BK: tl.constexpr,
) -> tl.tensor:
    """The sums y0 .. y3 (BN,) of ROWS rows, with this program's part of the `inputs` of one matrix added."""
    k = tl.arange(0, BK)
    steps = (inputs + BK - 1) // BK
    split = tl.num_programs(1)
    for step in range(steps * tl.program_id(1) // split, steps * (tl.program_id(1) + 1) // split):
        start = step * BK
        code = codes(words_ptr, start, inputs, columns, inside, stride_block, stride_row, FIELDS, BK).to(tl.float32)
        scale, zero = scale_and_zero(scales_ptr, zeros_ptr, start // group_size, outputs, columns, inside, ZERO)
        if SINGLE:  # to float32's own accuracy, for one operation more a weight
            code -= zero[None, :]
        from_ptr = x_ptr + source(numbers_ptr, start, group_size, PERMUTED)
        y0 += _row(from_ptr, k, inputs - start, code, scale, zero, SINGLE)
        if ROWS > 1:
            y1 += _row(from_ptr + x_stride, k, inputs - start, code, scale, zero, SINGLE)
        if ROWS > 2:
            y2 += _row(from_ptr + 2 * x_stride, k, inputs - start, code, scale, zero, SINGLE)
        if ROWS > 3:
            y3 += _row(from_ptr + 3 * x_stride, k, inputs - start, code, scale, zero, SINGLE)
    return y0, y1, y2, y3


@jit
def keep_rows(
    y_ptr: tl.tensor,
    y0: tl.tensor,
    y1: tl.tensor,
    y2: tl.tensor,
    y3: tl.tensor,
    outputs: tl.tensor,
    columns: tl.tensor,
    inside: tl.tensor,
    ROWS: tl.constexpr,
    ATOMIC: tl.constexpr,
) -> None:
    """Sums into y (ROWS, outputs), or, each part apart, (split, ROWS, outputs)."""
    if not ATOMIC:
        y_ptr += tl.program_id(1).to(tl.int64) * ROWS * outputs
    keep(y_ptr, columns, y0, inside, ATOMIC)
    if ROWS > 1:
        keep(y_ptr + outputs, columns, y1, inside, ATOMIC)
    if ROWS > 2:
        keep(y_ptr + 2 * outputs, columns, y2, inside, ATOMIC)
    if ROWS > 3:
        keep(y_ptr + 3 * outputs, columns, y3, inside, ATOMIC)


@jit
def gemv_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    words_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    zeros_ptr: tl.tensor,
    inputs: tl.tensor,
    outputs: tl.tensor,
    group_size: tl.tensor,
    stride_block: tl.tensor,
    stride_row: tl.tensor,
    FIELDS: tl.constexpr,
    ZERO: tl.constexpr,
    ROWS: tl.constexpr,
    SINGLE: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    ATOMIC: tl.constexpr,
) -> None:
    """x float32 (ROWS, inputs); words as in `fields.py`; scales and zeros (groups, outputs); y (ROWS, outputs), or its parts
    (split, ROWS, outputs). Program (i, s): outputs from i * BN on, part s of the inputs."""
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = columns < outputs
    y0 = tl.zeros((BN,), tl.float32)
    y0, y1, y2, y3 = gemv_steps(
        y0,
        y0,
        y0,
        y0,
        x_ptr,
        inputs,
        words_ptr,
        scales_ptr,
        zeros_ptr,
        words_ptr,
        inputs,
        outputs,
        group_size,
        stride_block,
        stride_row,
        columns,
        inside,
        FIELDS,
        ZERO,
        False,
        ROWS,
        SINGLE,
        BK,
    )
    keep_rows(y_ptr, y0, y1, y2, y3, outputs, columns, inside, ROWS, ATOMIC)


def gemv(x: Tensor, planes: FieldPlanes, choice: Choice, out_dtype: torch.dtype, deterministic: bool) -> Tensor:
    """x (1 to 4, in): (rows, out)."""
    rows, tile = x.shape[0], choice.tile
    wide = x.float()  # once, and not once for each weight
    own = {"ROWS": rows, "SINGLE": x.dtype == torch.float32, "BN": tile.outputs, "BK": tile.inputs}

    def launch(y: Tensor, atomic: bool) -> None:
        running.run(
            gemv_kernel,
            (-(-planes.outputs // tile.outputs), choice.split),
            {"x_ptr": wide, "y_ptr": y, **packed_arguments(planes)},
            {**packed_constants(planes), **own, "ATOMIC": atomic},
            tile.warps,
            tile.stages,
        )

    return split_product(rows, planes.outputs, choice.split, out_dtype, deterministic, x, launch)
