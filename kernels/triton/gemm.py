"""Some rows of activations times a packed matrix, on tensor cores.

    y[m, n] = sum over k of x[m, k] * w[k, n],        w[k, n] = (code[k, n] - zero[g(k), n]) * scale[g(k), n]

Each program unpacks BK inputs by BN outputs at a time for its BM rows, and adds up in float32. Weights are computed in float32
and rounded to the activations' dtype once, like a matrix that was never packed. Programs share out the rows, the outputs and
the inputs (`split`).
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
from .running import dot_type, keep, split_product


@jit
def weights(code: tl.tensor, scale: tl.tensor, zero: tl.tensor, DOT: tl.constexpr) -> tl.tensor:
    """Numbers (BK, BN) in DOT from codes (BK, BN), scales and zero points (BN,)."""
    value = code.to(tl.float32)  # never straight to 16 bits: that conversion is a slow one
    value = (
        (value - zero[None, :]) * scale[None, :]
        if tl.float32 == DOT
        else value * scale[None, :] + (-zero * scale)[None, :]  # one multiply-add; its error is far below that of 16 bits
    )
    return value.to(DOT)


@jit
def gemm_steps(
    sums: tl.tensor,
    step: tl.tensor,
    last: tl.tensor,
    x_ptr: tl.tensor,
    row_offsets: tl.tensor,
    present: tl.tensor,
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
    DOT: tl.constexpr,
    BK: tl.constexpr,
) -> tl.tensor:
    """`sums` (BM, BN) with the steps `step` .. `last - 1`, of BK of the `inputs` each, of one matrix added. The rows of the
    activations begin at `row_offsets` (BM,); those not `present` (BM,) count as zeros."""
    k = tl.arange(0, BK)
    for each in range(step, last):
        start = each * BK
        # The tail is masked here and not in the weights: what pads the words is no number to rely on.
        place = source(numbers_ptr, start, group_size, PERMUTED)
        x = tl.load(
            x_ptr + row_offsets[:, None] + (place + k)[None, :],
            mask=present[:, None] & (k < inputs - start)[None, :],
            other=0,
            eviction_policy="evict_last",
        )
        code = codes(words_ptr, start, inputs, columns, inside, stride_block, stride_row, FIELDS, BK)
        scale, zero = scale_and_zero(scales_ptr, zeros_ptr, start // group_size, outputs, columns, inside, ZERO)
        sums = tl.dot(x.to(DOT), weights(code, scale, zero, DOT), sums, input_precision="ieee")
    return sums


@jit
def keep_tile(
    y_ptr: tl.tensor,
    sums: tl.tensor,
    rows: tl.tensor,
    row: tl.tensor,
    outputs: tl.tensor,
    columns: tl.tensor,
    inside: tl.tensor,
    ATOMIC: tl.constexpr,
) -> None:
    """Sums (BM, BN) into y (rows, outputs), or, each part apart, (split, rows, outputs)."""
    if not ATOMIC:
        y_ptr += tl.program_id(2).to(tl.int64) * rows * outputs
    offsets = row.to(tl.int64)[:, None] * outputs + columns[None, :]
    keep(y_ptr, offsets, sums, (row < rows)[:, None] & inside[None, :], ATOMIC)


@jit
def gemm_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    words_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    zeros_ptr: tl.tensor,
    rows: tl.tensor,
    inputs: tl.tensor,
    outputs: tl.tensor,
    group_size: tl.tensor,
    stride_block: tl.tensor,
    stride_row: tl.tensor,
    FIELDS: tl.constexpr,
    ZERO: tl.constexpr,
    DOT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    ATOMIC: tl.constexpr,
) -> None:
    """x (rows, inputs); words as in `fields.py`; scales and zeros (groups, outputs); y (rows, outputs), or its parts
    (split, rows, outputs). Program (i, j, s): outputs from i * BN on, rows from j * BM on, part s of the inputs."""
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1) * BM + tl.arange(0, BM)
    inside = columns < outputs
    steps = (inputs + BK - 1) // BK
    split = tl.num_programs(2)
    sums = gemm_steps(
        tl.zeros((BM, BN), tl.float32),
        steps * tl.program_id(2) // split,
        steps * (tl.program_id(2) + 1) // split,
        x_ptr,
        row.to(tl.int64) * inputs,
        row < rows,
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
        DOT,
        BK,
    )
    keep_tile(y_ptr, sums, rows, row, outputs, columns, inside, ATOMIC)


def gemm(x: Tensor, planes: FieldPlanes, choice: Choice, out_dtype: torch.dtype, deterministic: bool) -> Tensor:
    """x (rows, in): (rows, out)."""
    rows, tile = x.shape[0], choice.tile

    def launch(y: Tensor, atomic: bool) -> None:
        constants = {"DOT": dot_type(x.dtype), "BM": tile.rows, "BN": tile.outputs, "BK": tile.inputs, "ATOMIC": atomic}
        running.run(
            gemm_kernel,
            (-(-planes.outputs // tile.outputs), -(-rows // tile.rows), choice.split),
            {"x_ptr": x, "y_ptr": y, "rows": rows, **packed_arguments(planes)},
            {**packed_constants(planes), **constants},
            tile.warps,
            tile.stages,
        )

    return split_product(rows, planes.outputs, choice.split, out_dtype, deterministic, x, launch)
