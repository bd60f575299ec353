"""What a back end computes, by the kernels of this folder."""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import FieldPlanes
from . import running
from .configs import select
from .dequantize import dequantized
from .expert_mixed import expert_mixed
from .gemm import gemm
from .gemv import gemv
from .group_mixed import group_mixed

__all__ = ["expert_mixed", "group_mixed", "product", "transposed_change", "transposed_numbers"]


def product(x: Tensor, planes: FieldPlanes, out_dtype: torch.dtype, deterministic: bool) -> Tensor:
    """x (rows, in): (rows, out)."""
    single = x.dtype == torch.float32
    shape = (planes.inputs, planes.outputs, planes.group_size, planes.groups)
    choice = select(planes.bits, x.shape[0], *shape, single, running.processors(x.device))
    if choice.kernel == "dequantize":
        return (x @ dequantized(planes, x.dtype)).to(out_dtype)
    kernel = gemv if choice.kernel == "gemv" else gemm
    return kernel(x, planes, choice, out_dtype, deterministic)


def transposed_numbers(planes: FieldPlanes) -> Tensor:
    """The numbers of a matrix, float32 (in, out)."""
    return dequantized(planes, torch.float32)


def transposed_change(planes: FieldPlanes, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers of a matrix less `weight`, (in, out) in `dtype`."""
    return (transposed_numbers(planes) - weight).to(dtype)
