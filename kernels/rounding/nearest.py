"""Rounding to nearest on a grid with a searched clip (see `grid.py`); needs no data."""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats import Format
from ..packing import PackedWeight, pack_weight
from .grid import fit_grids, quantize


def round_nearest(weight: Tensor, fmt: Format) -> PackedWeight:
    """`weight` (out, in) in the int format `fmt`: each group on the grid of least squared error, each weight to nearest."""
    outputs, inputs = weight.shape
    columns = weight.detach().to(torch.float32).T.contiguous()
    scales, zeros = fit_grids(columns, fmt)
    size = inputs if fmt.group_size is None else fmt.group_size
    codes = torch.empty(inputs, outputs, dtype=torch.uint8, device=weight.device)
    for group in range(len(scales)):
        rows = slice(group * size, (group + 1) * size)
        codes[rows] = quantize(columns[rows], scales[group], zeros[group], 2**fmt.bits - 1)
    return pack_weight(fmt, (outputs, inputs), codes, scales, None if fmt.symmetric else zeros.to(torch.uint8))
