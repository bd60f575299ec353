"""The grids of a matrix: a scale and a zero point for each row and group, by a searched clip.

A group of size g in one row spans [lo, hi], lo = min(w, 0), hi = max(w, 0). For a shrink factor p the grid is

    asymmetric   scale = p (hi - lo) / (2^b - 1),           zero = round(-p lo / scale)
    symmetric    scale = p max(-lo, hi) / ((2^b - 1) / 2),  zero = 2^(b-1)

with the scale rounded to fp16, as stored, before anything is measured on it. Of a fixed list of p the one with the least
sum of h_j (w_j - q_j)^2 over the group is kept, h_j the importance of input j (its mean square, where it is known, else 1);
p = 1 is tried first and wins ties. Few bits gain much from clipping
(a Gaussian group at 2 bits is best near p = 0.6), 8 bits gain nothing, so the list shrinks with the width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats import Format

SHRINK: dict[int, tuple[float, ...]] = {
    2: (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64, 0.58, 0.52),
    3: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7),
    4: (1.0, 0.95, 0.9, 0.85, 0.8),
    5: (1.0, 0.95, 0.9),
    6: (1.0, 0.95),
}
ENTRIES_AT_ONCE = 1 << 18  # of a matrix while its grids are searched: what a core's cache holds
SMALLEST_SCALE = 2.0**-24  # the smallest positive fp16
LARGEST_SCALE = 65504.0


def fit_grids(columns: Tensor, fmt: Format, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Scales and zero points, each float32 (groups, out), of a matrix given as `columns` (in, out), float32.

    `importance` (in,) weighs the squared errors. Zero points are whole numbers in [0, 2^bits - 1].
    """
    importance = torch.ones(len(columns), device=columns.device) if importance is None else importance
    outputs_at_once = max(1, ENTRIES_AT_ONCE // max(1, len(columns)))
    slices = [columns[:, start : start + outputs_at_once] for start in range(0, columns.shape[1], outputs_at_once)]
    grids = [_fit_slice(part.contiguous(), fmt, importance) for part in slices]
    scales, zeros = (torch.cat(tables, dim=1) for tables in zip(*grids, strict=True))
    return scales, zeros


def _fit_slice(columns: Tensor, fmt: Format, importance: Tensor) -> tuple[Tensor, Tensor]:
    inputs, outputs = columns.shape
    size = inputs if fmt.group_size is None else fmt.group_size
    whole = inputs // size
    scales, zeros = torch.empty(2, fmt.groups(inputs), outputs, device=columns.device)
    if whole:
        full = slice(0, whole * size)
        weights = importance[full].view(whole, size, 1)
        scales[:whole], zeros[:whole] = fit_grid(columns[full].view(whole, size, outputs), fmt, weights)
    if whole * size < inputs:  # a last, shorter group
        scales[whole], zeros[whole] = fit_grid(columns[whole * size :], fmt, importance[whole * size :, None])
    return scales, zeros


def fit_grid(group: Tensor, fmt: Format, importance: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point for groups of weights: `group` float32 (..., g, out) -> two float32 tensors (..., out).

    `importance` broadcasts against `group`.
    """
    levels = 2**fmt.bits - 1
    lo = group.amin(dim=-2).clamp_(max=0)
    hi = group.amax(dim=-2).clamp_(min=0)
    best_scale, best_zero = _grid(lo, hi, levels, fmt.symmetric)
    shrinks = SHRINK.get(fmt.bits, ())[1:]
    if not shrinks:
        return best_scale, best_zero
    best_error = _error(group, best_scale, best_zero, levels, importance)
    for shrink in shrinks:
        scale, zero = _grid(lo * shrink, hi * shrink, levels, fmt.symmetric)
        error = _error(group, scale, zero, levels, importance)
        better = error < best_error
        best_scale = torch.where(better, scale, best_scale)
        best_zero = torch.where(better, zero, best_zero)
        best_error = torch.where(better, error, best_error)
    return best_scale, best_zero


def quantize(weights: Tensor, scale: Tensor, zero: Tensor, levels: int) -> Tensor:
    """Codes (float32, whole numbers in [0, levels]) of `weights` on a grid; shapes broadcast. Rounds half to even."""
    return (weights / scale).round_().add_(zero).clamp_(0, levels)


def _grid(lo: Tensor, hi: Tensor, levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    span = torch.maximum(-lo, hi) * 2 if symmetric else hi - lo
    scale = (span / levels).clamp_(SMALLEST_SCALE, LARGEST_SCALE).to(torch.float16).to(torch.float32)
    if symmetric:
        return scale, torch.full_like(scale, (levels + 1) // 2)
    return scale, (-lo / scale).round_().clamp_(0, levels)


def _error(group: Tensor, scale: Tensor, zero: Tensor, levels: int, importance: Tensor) -> Tensor:
    scale, zero = scale.unsqueeze(-2), zero.unsqueeze(-2)
    return quantize(group, scale, zero, levels).sub_(zero).mul_(scale).sub_(group).square_().mul_(importance).sum(dim=-2)
