"""baq: the loss that BAQ's law of equal steps predicts for a unit rounded by GPTQ, before anything is rounded.

    L_j(b) = C_j 4^(-b)        C_j = sum_i rho_ij^2 / (12 d_j^2)        loss = 1/N sum_j L_j(b)

for column j at b bits (BAQ, arXiv 2506.05664, section on its loss model as we derive it: the released code scales a measured
loss in its place). rho_ij is the range that the grid of row i spans at column j, its step about rho 2^(-b), the variance of
uniform noise a twelfth of the step's square, and 1 / d_j^2 = 1 / U_jj^2 what GPTQ makes of an error in column j, with the
order and damping of our own GPTQ (BAQ has columns in their natural order, 1 % damping, and half of this sum). BAQ's grids
span whole rows; for formats with groups rho is that of the row's own group: max(w, 0) - min(w, 0), and for symmetric
formats 2 max|w|. Formats of one group size therefore lie on one line of slope -2 in log2 of the loss, whatever the weights:
use it to interpolate, and mind that the law breaks at 2 bits and that it knows nothing of clipped grids.

Float formats and an embedding's lookups follow no law of equal steps: they count their rendered error. Budgets are spent by
the solver `closed_form`; `solvers/water_filling.py` has BAQ's closed form and its released rule for levels.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ...kernels.float64 import as_float64
from ...kernels.formats import Format
from ...kernels.packing import PackedWeight
from ..column_error import column_errors
from ..render import Rendered
from ..unexplained import by_those_open, estimate_unexplained


def squared_ranges(weight: Tensor, fmt: Format, parts: int = 1) -> Tensor:
    """sum_i rho_ij^2 of `weight` (out, in) on the grids of the int format `fmt`, float64 (parts, in)."""
    outputs, inputs = weight.shape
    size = inputs if fmt.group_size is None else fmt.group_size
    ranges = []
    for start in range(0, inputs, size):
        group = weight[:, start : start + size]
        low, high = group.amin(dim=1).clamp(max=0), group.amax(dim=1).clamp(min=0)
        rho = 2 * torch.maximum(-low, high) if fmt.symmetric else high - low
        ranges.append(as_float64(rho).square().view(parts, outputs // parts).sum(dim=1, keepdim=True).expand(-1, group.shape[1]))
    return torch.cat(ranges, dim=1)


def uniform_noise(squared_range: Tensor, bits: float) -> Tensor:
    """Variance of the rounding error on grids of 2^bits steps over ranges of these squares: rho^2 4^(-b) / 12."""
    noise: Tensor = squared_range * 4.0**-bits / 12
    return noise


def predicted_errors(made: Rendered, weight: Tensor, parts: int) -> Tensor:
    """sum_i of the squared errors that the law predicts in each column, float64 (parts, in)."""
    if isinstance(made, PackedWeight):
        return uniform_noise(squared_ranges(weight, made.format, parts), made.format.bits)
    return column_errors(made, weight, parts)


QUANTITY = "squared output error after rounding by GPTQ, by the law of equal steps"
estimate = partial(estimate_unexplained, by_those_open, predicted_errors, QUANTITY)
