"""A packed matrix written out, and its product by `torch.matmul`: what pays once there are many rows.

w[k, n] = (code[k, n] - zero[g(k), n]) * scale[g(k), n]        in float32, then rounded
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ..layout import FieldPlanes
from . import running
from .arguments import packed_arguments, packed_constants
from .configs import Tile, tile, within_groups
from .fields import codes, jit, scale_and_zero, source


@jit
def dequantize_kernel(
    w_ptr: tl.tensor,
    words_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    zeros_ptr: tl.tensor,
    numbers_ptr: tl.tensor,
    inputs: tl.tensor,
    outputs: tl.tensor,
    group_size: tl.tensor,
    stride_block: tl.tensor,
    stride_row: tl.tensor,
    FIELDS: tl.constexpr,
    ZERO: tl.constexpr,
    PERMUTED: tl.constexpr,
    CODES: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """words as in `fields.py`; scales and zeros (groups, outputs); w (inputs, outputs) of numbers or, CODES, of the codes
    themselves; PERMUTED: group g is written where the group of number numbers[g] (int32) belongs. Program (i, j): outputs from
    i * BN on, inputs from j * BK on."""
    columns = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = columns < outputs
    start = tl.program_id(1) * BK
    k = tl.arange(0, BK)
    value = codes(words_ptr, start, inputs, columns, inside, stride_block, stride_row, FIELDS, BK)
    if not CODES:
        scale, zero = scale_and_zero(scales_ptr, zeros_ptr, start // group_size, outputs, columns, inside, ZERO)
        value = (value.to(tl.float32) - zero[None, :]) * scale[None, :]
    w_ptr += tl.cast(source(numbers_ptr, start, group_size, PERMUTED), tl.int64) * outputs
    mask = (k < inputs - start)[:, None] & inside[None, :]
    tl.store(w_ptr + (k[:, None] * outputs + columns[None, :]), value.to(w_ptr.dtype.element_ty), mask=mask)


def write(w: Tensor, planes: FieldPlanes, numbers: Tensor | None = None) -> None:
    """The numbers of `planes` into w (in, out), or, for uint8, the codes; with `numbers` (groups,), each group to the place of
    its number."""
    if w.numel() == 0:
        return
    shape: Tile = within_groups(tile("dequantize", planes.bits, 1), planes.inputs, planes.group_size, planes.groups)
    running.run(
        dequantize_kernel,
        (-(-planes.outputs // shape.outputs), -(-planes.inputs // shape.inputs)),
        {"w_ptr": w, "numbers_ptr": planes.words if numbers is None else numbers, **packed_arguments(planes)},
        {
            **packed_constants(planes),
            "PERMUTED": numbers is not None,
            "CODES": w.dtype == torch.uint8,
            "BN": shape.outputs,
            "BK": shape.inputs,
        },
        shape.warps,
        shape.stages,
    )


def dequantized(planes: FieldPlanes, dtype: torch.dtype) -> Tensor:
    """The matrix, (in, out)."""
    w = torch.empty(planes.inputs, planes.outputs, dtype=dtype, device=planes.words.device)
    write(w, planes)
    return w


def unpacked(planes: FieldPlanes) -> Tensor:
    """The codes, uint8 (in, out)."""
    return dequantized(planes, torch.uint8)
