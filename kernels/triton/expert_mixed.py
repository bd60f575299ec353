"""Products of tokens with the matrices of their experts, each expert in a width of its own.

    y[p, n] = sum over i of x[p // k, i] * w_e[i, n],        pair p = t * k + j of token t and its expert e = chosen[t, j]

Pairs are sorted by their experts and cut into blocks of BM, each of one expert; a program computes one block by BN outputs,
and branches on the expert's width once, before its loop. A launch serves three widths, whatever the number of experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

from ..mixed import MOST_CLASSES, ExpertMixed
from ..packing import FIELDS
from . import running
from .configs import tile, within_groups
from .fields import jit, placed
from .gemm import gemm_steps
from .running import dot_type


@dataclass(frozen=True, eq=False)
class Aligned:
    """`pairs` int32 (blocks * size,): the pairs of block b at b * size on, then the number of all pairs where none is left;
    `experts` int32 (blocks,); of these blocks the first `filled` (1,) hold pairs."""

    pairs: Tensor
    experts: Tensor
    filled: Tensor
    blocks: int


def align(chosen: Tensor, bits: Tensor, size: int) -> Aligned:
    """Pairs of `chosen` (T, k) in blocks of `size`, sorted by the width of their expert, the expert and the pair.

    There are as many blocks as the worst choice of experts needs, so that nothing waits for the device.
    """
    flat, experts = chosen.reshape(-1), bits.shape[0]
    pairs = flat.numel()
    device = chosen.device
    blocks = min(pairs, -(-(pairs + experts * (size - 1)) // size))
    order = torch.argsort(bits, stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(experts, device=device))  # of each expert in that order
    wanted = place[flat]
    counts = torch.zeros(experts, dtype=torch.int64, device=device).scatter_add_(0, wanted, torch.ones_like(wanted))
    ends = ((counts + size - 1) // size).cumsum(0)
    sorted_pairs = torch.argsort(wanted, stable=True)
    at = wanted[sorted_pairs]
    before = counts.cumsum(0) - counts
    first_block = ends - (counts + size - 1) // size
    target = first_block[at] * size + torch.arange(pairs, device=device) - before[at]
    padded = torch.full((blocks * size,), pairs, dtype=torch.int32, device=device)
    padded.scatter_(0, target, sorted_pairs.to(torch.int32))
    owner = torch.searchsorted(ends, torch.arange(blocks, device=device), right=True).clamp_(max=experts - 1)
    return Aligned(padded, order[owner].to(torch.int32), ends[-1:].to(torch.int32), blocks)


@jit
def _expert_tile(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    pair: tl.tensor,
    present: tl.tensor,
    each: tl.tensor,
    words_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    zeros_ptr: tl.tensor,
    inputs: tl.tensor,
    outputs: tl.tensor,
    group_size: tl.tensor,
    columns: tl.tensor,
    inside: tl.tensor,
    WIDTH: tl.constexpr,
    FIELDS: tl.constexpr,
    ZERO: tl.constexpr,
    DOT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    sums = gemm_steps(
        tl.zeros((BM, BN), tl.float32), 0, (inputs + BK - 1) // BK, x_ptr, (pair // each).to(tl.int64) * inputs, present,
        words_ptr, scales_ptr, zeros_ptr, words_ptr, inputs, outputs, group_size, outputs * WIDTH, outputs, columns, inside,
        FIELDS, ZERO, False, DOT, BK,
    )  # fmt: skip
    offsets = pair.to(tl.int64)[:, None] * outputs + columns[None, :]
    tl.store(y_ptr + offsets, sums.to(y_ptr.dtype.element_ty), mask=present[:, None] & inside[None, :])


@jit
def expert_kernel(
    x_ptr: tl.tensor,
    y_ptr: tl.tensor,
    words_ptr: tl.tensor,
    base_ptr: tl.tensor,
    bits_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    zeros_ptr: tl.tensor,
    pairs_ptr: tl.tensor,
    experts_ptr: tl.tensor,
    filled_ptr: tl.tensor,
    pairs: tl.tensor,
    each: tl.tensor,
    inputs: tl.tensor,
    outputs: tl.tensor,
    groups: tl.tensor,
    group_size: tl.tensor,
    WIDTH_a: tl.constexpr,
    FIELDS_a: tl.constexpr,
    ZERO_a: tl.constexpr,
    WIDTH_b: tl.constexpr,
    FIELDS_b: tl.constexpr,
    ZERO_b: tl.constexpr,
    WIDTH_c: tl.constexpr,
    FIELDS_c: tl.constexpr,
    ZERO_c: tl.constexpr,
    CLASSES: tl.constexpr,
    DOT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
) -> None:
    """x (T, inputs); words int32, flat, expert e's from word base[e] (int64) on in block order, bits (E,); scales and zeros
    (E, groups, outputs); pairs, experts and filled as in `Aligned`; y (pairs, outputs), `each` pairs for every token. A launch
    computes CLASSES widths, each with its fields and its zero point. Program (b, i): block b, outputs from i * BN on."""
    block = tl.program_id(0)
    if block < tl.load(filled_ptr):
        columns = tl.program_id(1) * BN + tl.arange(0, BN)
        inside = columns < outputs
        pair = tl.load(pairs_ptr + block.to(tl.int64) * BM + tl.arange(0, BM))
        expert = tl.load(experts_ptr + block)
        width = tl.load(bits_ptr + expert)
        words_ptr += tl.load(base_ptr + expert)
        scales_ptr += expert.to(tl.int64) * groups * outputs
        zeros_ptr += expert.to(tl.int64) * groups * outputs
        if width == WIDTH_a:
            _expert_tile(
                x_ptr, y_ptr, pair, pair < pairs, each, words_ptr, scales_ptr, zeros_ptr, inputs, outputs, group_size,
                columns, inside, WIDTH_a, FIELDS_a, ZERO_a, DOT, BM, BN, BK,
            )  # fmt: skip
        if CLASSES > 1:  # noqa: SIM102 (decided while compiling)
            if width == WIDTH_b:
                _expert_tile(
                    x_ptr, y_ptr, pair, pair < pairs, each, words_ptr, scales_ptr, zeros_ptr, inputs, outputs, group_size,
                    columns, inside, WIDTH_b, FIELDS_b, ZERO_b, DOT, BM, BN, BK,
                )  # fmt: skip
        if CLASSES > 2:  # noqa: SIM102 (decided while compiling)
            if width == WIDTH_c:
                _expert_tile(
                    x_ptr, y_ptr, pair, pair < pairs, each, words_ptr, scales_ptr, zeros_ptr, inputs, outputs, group_size,
                    columns, inside, WIDTH_c, FIELDS_c, ZERO_c, DOT, BM, BN, BK,
                )  # fmt: skip


def expert_mixed(x: Tensor, experts: ExpertMixed, chosen: Tensor, out_dtype: torch.dtype) -> Tensor:
    """x (T, in) and chosen (T, k): (T * k, out)."""
    pairs = chosen.numel()
    groups = experts.scales.shape[1]
    kernel = "experts32" if x.dtype == torch.float32 else "experts"
    rows = -(-pairs // experts.experts)  # of one expert, where all are chosen alike
    shape = within_groups(tile(kernel, max(experts.widths), rows), experts.inputs, experts.group_size, groups)
    aligned = align(chosen, experts.bits, shape.rows)
    y = torch.empty(pairs, experts.outputs, dtype=out_dtype, device=x.device)
    scales = experts.scales.contiguous()
    arguments: dict[str, Tensor | int] = {
        "x_ptr": x,
        "y_ptr": y,
        "words_ptr": experts.words,
        "base_ptr": experts.base,
        "bits_ptr": experts.bits,
        "scales_ptr": scales,
        "zeros_ptr": scales if experts.zeros is None else experts.zeros.contiguous(),
        "pairs_ptr": aligned.pairs,
        "experts_ptr": aligned.experts,
        "filled_ptr": aligned.filled,
        "pairs": pairs,
        "each": chosen.shape[1],
        "inputs": experts.inputs,
        "outputs": experts.outputs,
        "groups": groups,
        "group_size": experts.group_size,
    }
    constants = {"DOT": dot_type(x.dtype), "BM": shape.rows, "BN": shape.outputs, "BK": shape.inputs}
    for first in range(0, len(experts.widths), MOST_CLASSES):
        widths = experts.widths[first : first + MOST_CLASSES]
        classes: dict[str, object] = {"CLASSES": len(widths)}
        for index, letter in enumerate("abc"[:MOST_CLASSES]):
            width = widths[min(index, len(widths) - 1)]
            zero = 2.0 ** (width - 1) if experts.zeros is None else None
            classes |= {f"WIDTH_{letter}": width, f"FIELDS_{letter}": placed(FIELDS[width]), f"ZERO_{letter}": zero}
        grid = (aligned.blocks, -(-experts.outputs // shape.outputs))
        running.run(expert_kernel, grid, arguments, {**classes, **constants}, shape.warps, shape.stages)
    return y
