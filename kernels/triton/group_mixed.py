"""A product with a matrix whose groups of inputs are stored in up to three widths, in one launch.

    y[m, n] = sum over classes c, over groups i of c, over j in the group of x[m, number_c[i] * size + j] * w_c[i * size + j, n]

A program walks one class after another, each in a loop compiled for its width, and reads the activations where the group's
number says: nothing is permuted and y is written once. Each class's inputs are shared out to `split` programs.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..mixed import MOST_CLASSES, GroupMixed
from . import running
from .arguments import packed_arguments, packed_constants
from .configs import select
from .dequantize import write
from .fields import jit
from .gemm import gemm_steps, keep_tile
from .gemv import gemv_steps, keep_rows
from .running import dot_type, split_product


@jit
def group_gemv_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    words_ptr_a: tl.tensor,
    scales_ptr_a: tl.tensor,
    zeros_ptr_a: tl.tensor,
    numbers_ptr_a: tl.tensor,
    inputs_a: tl.tensor,
    stride_block_a: tl.tensor,
    stride_row_a: tl.tensor,
    words_ptr_b: tl.tensor,
    scales_ptr_b: tl.tensor,
    zeros_ptr_b: tl.tensor,
    numbers_ptr_b: tl.tensor,
    inputs_b: tl.tensor,
    stride_block_b: tl.tensor,
    stride_row_b: tl.tensor,
    words_ptr_c: tl.tensor,
    scales_ptr_c: tl.tensor,
    zeros_ptr_c: tl.tensor,
    numbers_ptr_c: tl.tensor,
    inputs_c: tl.tensor,
    stride_block_c: tl.tensor,
    stride_row_c: tl.tensor,
    x_stride: tl.tensor,
    outputs: tl.tensor,
    group_size: tl.tensor,
    FIELDS_a: tl.constexpr,
    ZERO_a: tl.constexpr,
    FIELDS_b: tl.constexpr,
    ZERO_b: tl.constexpr,
    FIELDS_c: tl.constexpr,
    ZERO_c: tl.constexpr,
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
    SINGLE: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    ATOMIC: tl.constexpr,
) -> None:
    """As `gemv_kernel`, with x float32 (ROWS, x_stride) and, for each of the CLASSES, arguments of its own: those of a packed
    matrix and `numbers` int32 (groups,)."""
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = columns < outputs
    y0 = tl.zeros((BN,), tl.float32)
    y0, y1, y2, y3 = gemv_steps(
        y0, y0, y0, y0, x_ptr, x_stride, words_ptr_a, scales_ptr_a, zeros_ptr_a, numbers_ptr_a, inputs_a, outputs, group_size,
        stride_block_a, stride_row_a, columns, inside, FIELDS_a, ZERO_a, True, ROWS, SINGLE, BK,
    )  # fmt: skip
    if CLASSES > 1:
        y0, y1, y2, y3 = gemv_steps(
            y0, y1, y2, y3, x_ptr, x_stride, words_ptr_b, scales_ptr_b, zeros_ptr_b, numbers_ptr_b, inputs_b, outputs, group_size,
            stride_block_b, stride_row_b, columns, inside, FIELDS_b, ZERO_b, True, ROWS, SINGLE, BK,
        )  # fmt: skip
    if CLASSES > 2:
        y0, y1, y2, y3 = gemv_steps(
            y0, y1, y2, y3, x_ptr, x_stride, words_ptr_c, scales_ptr_c, zeros_ptr_c, numbers_ptr_c, inputs_c, outputs, group_size,
            stride_block_c, stride_row_c, columns, inside, FIELDS_c, ZERO_c, True, ROWS, SINGLE, BK,
        )  # fmt: skip
    keep_rows(y_ptr, y0, y1, y2, y3, outputs, columns, inside, ROWS, ATOMIC)


@jit
def _class_steps(
    sums: tl.tensor,
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
    DOT: tl.constexpr,
    BK: tl.constexpr,
) -> tl.tensor:
    steps = (inputs + BK - 1) // BK
    split = tl.num_programs(2)
    return gemm_steps(
        sums, steps * tl.program_id(2) // split, steps * (tl.program_id(2) + 1) // split, x_ptr, row_offsets, present,
        words_ptr, scales_ptr, zeros_ptr, numbers_ptr, inputs, outputs, group_size, stride_block, stride_row, columns, inside,
        FIELDS, ZERO, True, DOT, BK,
    )  # fmt: skip


@jit
def group_gemm_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    words_ptr_a: tl.tensor,
    scales_ptr_a: tl.tensor,
    zeros_ptr_a: tl.tensor,
    numbers_ptr_a: tl.tensor,
    inputs_a: tl.tensor,
    stride_block_a: tl.tensor,
    stride_row_a: tl.tensor,
    words_ptr_b: tl.tensor,
    scales_ptr_b: tl.tensor,
    zeros_ptr_b: tl.tensor,
    numbers_ptr_b: tl.tensor,
    inputs_b: tl.tensor,
    stride_block_b: tl.tensor,
    stride_row_b: tl.tensor,
    words_ptr_c: tl.tensor,
    scales_ptr_c: tl.tensor,
    zeros_ptr_c: tl.tensor,
    numbers_ptr_c: tl.tensor,
    inputs_c: tl.tensor,
    stride_block_c: tl.tensor,
    stride_row_c: tl.tensor,
    rows: tl.tensor,
    x_stride: tl.tensor,
    outputs: tl.tensor,
    group_size: tl.tensor,
    FIELDS_a: tl.constexpr,
    ZERO_a: tl.constexpr,
    FIELDS_b: tl.constexpr,
    ZERO_b: tl.constexpr,
    FIELDS_c: tl.constexpr,
    ZERO_c: tl.constexpr,
    CLASSES: tl.constexpr,
    DOT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    ATOMIC: tl.constexpr,
) -> None:
    """As `gemm_kernel`, with x (rows, x_stride) and the arguments of the classes as in `group_gemv_kernel`."""
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1) * BM + tl.arange(0, BM)
    inside = columns < outputs
    row_offsets = row.to(tl.int64) * x_stride
    sums = _class_steps(
        tl.zeros((BM, BN), tl.float32), x_ptr, row_offsets, row < rows, words_ptr_a, scales_ptr_a, zeros_ptr_a, numbers_ptr_a,
        inputs_a, outputs, group_size, stride_block_a, stride_row_a, columns, inside, FIELDS_a, ZERO_a, DOT, BK,
    )  # fmt: skip
    if CLASSES > 1:
        sums = _class_steps(
            sums, x_ptr, row_offsets, row < rows, words_ptr_b, scales_ptr_b, zeros_ptr_b, numbers_ptr_b,
            inputs_b, outputs, group_size, stride_block_b, stride_row_b, columns, inside, FIELDS_b, ZERO_b, DOT, BK,
        )  # fmt: skip
    if CLASSES > 2:
        sums = _class_steps(
            sums, x_ptr, row_offsets, row < rows, words_ptr_c, scales_ptr_c, zeros_ptr_c, numbers_ptr_c,
            inputs_c, outputs, group_size, stride_block_c, stride_row_c, columns, inside, FIELDS_c, ZERO_c, DOT, BK,
        )  # fmt: skip
    keep_tile(y_ptr, sums, rows, row, outputs, columns, inside, ATOMIC)


def group_mixed(x: Tensor, mixed: GroupMixed, out_dtype: torch.dtype, deterministic: bool) -> Tensor:
    """x (rows, in): (rows, out)."""
    rows, first = x.shape[0], mixed.classes[0][0]
    groups = max(planes.groups for planes, _ in mixed.classes)  # a tile must not reach over two groups of one class
    widest = max(planes.bits for planes, _ in mixed.classes)
    single = x.dtype == torch.float32
    choice = select(widest, rows, mixed.inputs, first.outputs, first.group_size, groups, single, running.processors(x.device))
    if choice.kernel == "dequantize":
        w = torch.empty(mixed.inputs, mixed.outputs, dtype=x.dtype, device=x.device)
        for planes, numbers in mixed.classes:
            write(w, planes, numbers)
        return (x @ w).to(out_dtype)
    tile = choice.tile
    wide = x.float() if choice.kernel == "gemv" else x
    arguments: dict[str, Tensor | int] = {"x_stride": mixed.inputs, "outputs": mixed.outputs, "group_size": first.group_size}
    constants: dict[str, object] = {"CLASSES": len(mixed.classes), "BN": tile.outputs, "BK": tile.inputs}
    for index, letter in enumerate("abc"[:MOST_CLASSES]):
        planes, numbers = mixed.classes[min(index, len(mixed.classes) - 1)]  # a class that is not there is never read
        arguments |= {f"numbers_ptr_{letter}": numbers, **packed_arguments(planes, f"_{letter}")}
        constants |= packed_constants(planes, f"_{letter}")

    def launch(y: Tensor, atomic: bool) -> None:
        across = -(-mixed.outputs // tile.outputs)
        given: dict[str, Tensor | int] = {"x_ptr": wide, "y_ptr": y, **arguments}
        if choice.kernel == "gemv":
            own = {"ROWS": rows, "SINGLE": single, "ATOMIC": atomic}
            running.run(group_gemv_kernel, (across, choice.split), given, {**constants, **own}, tile.warps, tile.stages)
        else:
            own = {"DOT": dot_type(x.dtype), "BM": tile.rows, "ATOMIC": atomic}
            grid = (across, -(-rows // tile.rows), choice.split)
            running.run(group_gemm_kernel, grid, {**given, "rows": rows}, {**constants, **own}, tile.warps, tile.stages)

    return split_product(rows, mixed.outputs, choice.split, out_dtype, deterministic, x, launch)
