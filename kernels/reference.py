"""The plain PyTorch product that every kernel must agree with.

    y = x @ dequantize(w).T,        dequantize(w)[o, i] = (code[i, o] - zero[g(i), o]) * scale[g(i), o]

`dequantize_transposed` gives the (in, out) matrix, the order in which codes are stored, so no transposition is paid for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .packing import PackedWeight, unpack, unpack_zeros


def dequantize_transposed(weight: PackedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers that `weight` stands for, shape (in, out), computed in float32 and cast to `dtype`."""
    outputs, inputs = weight.shape
    fmt = weight.format
    numbers = unpack(weight.words, fmt.bits, inputs).to(torch.float32)
    scales = weight.scales.to(torch.float32)
    zeros = unpack_zeros(weight)
    group = inputs if fmt.group_size is None else fmt.group_size
    whole = inputs // group * group if group else 0
    for rows, first, size in (
        (slice(0, whole), 0, group),
        (slice(whole, inputs), whole // group if group else 0, inputs - whole),
    ):
        part = numbers[rows]
        if part.numel() == 0:
            continue
        part = part.view(-1, size, outputs)
        last = first + part.shape[0]
        if zeros is None:
            part.sub_(2 ** (fmt.bits - 1))
        else:
            part.sub_(zeros[first:last, None, :])
        part.mul_(scales[first:last, None, :])
    return numbers.to(dtype)


def dequantize(weight: PackedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers that `weight` stands for, shape (out, in)."""
    return dequantize_transposed(weight, dtype).T


def matmul(x: Tensor, weight: PackedWeight) -> Tensor:
    """x of shape (..., in) times `weight` transposed: (..., out), in x's dtype."""
    return x @ dequantize_transposed(weight, x.dtype)


def gather_rows(weight: PackedWeight, rows: Tensor) -> Tensor:
    """Rows of the (out, in) matrix, float32, shape (*rows.shape, in): an embedding lookup that unpacks only what it reads."""
    flat = rows.reshape(-1)
    zeros = unpack_zeros(weight)
    picked = PackedWeight(
        weight.format,
        (flat.numel(), weight.shape[1]),
        weight.words[:, :, flat],
        weight.scales[:, flat],
        None,
    )
    if zeros is None:
        numbers = dequantize_transposed(picked)
    else:
        codes = unpack(picked.words, weight.format.bits, weight.shape[1]).to(torch.float32)
        group = weight.shape[1] if weight.format.group_size is None else weight.format.group_size
        index = torch.arange(weight.shape[1], device=codes.device) // group
        numbers = (codes - zeros[:, flat][index]) * picked.scales.to(torch.float32)[index]
    return numbers.T.reshape(*rows.shape, weight.shape[1])
