"""GPTQ: round one input column after another and let the columns still open make up for the error.

With H = X^T X the second moment of the inputs, damped by a share of its mean diagonal, and U upper triangular with
H^-1 = U^T U, the columns are taken in order:

    q_j = round(w_j on its group's grid)        e_j = (w_j - q_j) / U_jj        w_k -= e_j U_jk   for k > j

The order is that of falling H_jj: the inputs that matter most are rounded first, while all others can still make up for
them. Grids are fitted beforehand on the untouched weights, errors weighed by H_jj, group by group in the matrix's own
order, so the packed layout stays contiguous. It holds exactly that sum_j ||e_j||^2 = tr((W - Q) H (W - Q)^T) with the damped H.
Source: Frantar et al., GPTQ (2023), with its options act-order and static groups.

Formats with the same group size go through the loop together, and rows are independent, so the loop is written over
tensors of shape (formats, in, rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..float64 import home
from ..formats import Format
from ..packing import PackedWeight, pack_weight
from .grid import fit_grids

DAMPING = 0.05  # of the mean diagonal; measured better than the customary 0.01 on a few thousand tokens
BLOCK = 32  # columns updated one by one before the rest of the matrix is
WEIGHTS_AT_ONCE = 2_000_000  # of one format in the loop: bounds memory, keeps blocks in cache


@dataclass(frozen=True, eq=False)
class Factor:
    """`order` (in,): the columns by falling H_jj. `upper` (in, in) float32: U of the damped H in that order.
    `importance` (in,) float32: H_jj in the matrix's own order."""

    order: Tensor
    upper: Tensor
    importance: Tensor


def inverse_factor(second_moment: Tensor) -> Factor:
    """The Factor of H (in, in). Inputs that never occur are given the mean diagonal, which makes them plain rounding;
    damping grows tenfold until the factor exists."""
    device, inputs = second_moment.device, len(second_moment)
    second_moment = second_moment.to(home(device))
    diagonal = second_moment.diagonal().to(torch.float64, copy=True)
    mean = float(diagonal.mean())
    if not mean > 0:
        return Factor(torch.arange(inputs, device=device), torch.eye(inputs, device=device), torch.ones(inputs, device=device))
    diagonal[diagonal == 0] = mean
    importance = (diagonal / mean).to(torch.float32)
    order = torch.argsort(diagonal, descending=True, stable=True)
    damping = DAMPING * mean
    while True:
        damped = second_moment[order[:, None], order].to(torch.float64)
        damped.diagonal().copy_(diagonal[order] + damping)
        try:
            return Factor(*(tensor.to(device) for tensor in (order, _inverse_upper(damped), importance)))
        except RuntimeError:  # torch's LinAlgError: not positive definite in float64
            damping *= 10


def _inverse_upper(matrix: Tensor) -> Tensor:
    """U (in, in) float32 with matrix^-1 = U^T U. Each float64 step is let go before the next but one: of 8192 inputs each
    takes half a gigabyte, and `matrix` is overwritten."""
    torch.linalg.cholesky(matrix, out=matrix)
    inverse = torch.cholesky_inverse(matrix)
    torch.linalg.cholesky(inverse, upper=True, out=matrix)
    return matrix.to(torch.float32)


def round_gptq(weight: Tensor, factor: Factor, formats: Sequence[Format]) -> list[PackedWeight]:
    """`weight` (out, in) in each of `formats` (int, one group size among them), compensated with `factor` from
    `inverse_factor`. Raises ValueError when the group sizes differ."""
    if len({fmt.group_size for fmt in formats}) != 1:
        raise ValueError("formats rounded together need one group size")
    outputs, inputs = weight.shape
    size = inputs if formats[0].group_size is None else formats[0].group_size
    columns = weight.detach().to(torch.float32).T.contiguous()
    grids = [fit_grids(columns, fmt, factor.importance) for fmt in formats]
    scales, zeros = (torch.stack(tables) for tables in zip(*grids, strict=True))
    codes = torch.empty(len(formats), inputs, outputs, dtype=torch.uint8, device=weight.device)
    rows_at_once = max(1, WEIGHTS_AT_ONCE // inputs)
    for start in range(0, outputs, rows_at_once):
        rows = slice(start, start + rows_at_once)
        open_columns = columns[factor.order, rows].expand(len(formats), -1, -1).contiguous()
        in_order = _compensate(open_columns, factor, formats, scales[:, :, rows], zeros[:, :, rows], factor.order // size)
        codes[:, factor.order, rows] = in_order
    return [
        pack_weight(fmt, (outputs, inputs), codes[i], scales[i], None if fmt.symmetric else zeros[i].to(torch.uint8))
        for i, fmt in enumerate(formats)
    ]


def _compensate(
    weights: Tensor, factor: Factor, formats: Sequence[Format], scales: Tensor, zeros: Tensor, group_of: Tensor
) -> Tensor:
    """Run the loop on `weights` (formats, in, rows), columns in the factor's order, and return their codes, uint8.

    Consumes `weights`. `group_of` (in,) is the group of each column, in the same order.
    """
    upper, inputs = factor.upper, weights.shape[1]
    codes = torch.empty(weights.shape, dtype=torch.uint8, device=weights.device)
    levels = torch.tensor([2.0**fmt.bits - 1 for fmt in formats], device=weights.device)[:, None]
    groups = group_of.tolist()
    for block in range(0, inputs, BLOCK):
        end = min(block + BLOCK, inputs)
        errors = torch.empty(len(formats), end - block, weights.shape[2], device=weights.device)
        for j in range(block, end):
            column, scale, zero = weights[:, j], scales[:, groups[j]], zeros[:, groups[j]]
            code = column.div(scale).round_().add_(zero).clamp_(min=0)
            code = torch.minimum(code, levels, out=code)
            codes[:, j] = code
            error = column.sub(code.sub_(zero).mul_(scale)).div_(upper[j, j])
            errors[:, j - block] = error
            if j + 1 < end:
                weights[:, j + 1 : end].addcmul_(upper[j, j + 1 : end, None], error[:, None, :], value=-1)
        if end < inputs:
            weights[:, end:].baddbmm_(upper[block:end, end:].T.expand(len(formats), -1, -1), errors, alpha=-1)
    return codes
