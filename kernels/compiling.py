"""The packed product as one operator of torch, so that `torch.compile` takes it whole and does not look inside."""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import FieldPlanes
from .product import matmul


@torch.library.custom_op("bitplan::packed_matmul", mutates_args=())
def packed_matmul(
    x: Tensor,
    words: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    widths: list[int],
    lows: list[int],
    inputs: int,
    group_size: int,
) -> Tensor:
    """`matmul(x, FieldPlanes(...))` of these tensors: (..., out) in x's dtype."""
    return matmul(x, FieldPlanes(words, tuple(zip(widths, lows, strict=True)), inputs, scales, zeros, group_size))


@packed_matmul.register_fake
def _(
    x: Tensor,
    words: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    widths: list[int],
    lows: list[int],
    inputs: int,
    group_size: int,
) -> Tensor:
    return x.new_empty(*x.shape[:-1], words.shape[2])
