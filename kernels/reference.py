"""The plain PyTorch products that every kernel must agree with.

    y = x @ dequantize(w).T,        dequantize(w)[o, i] = (code[i, o] - zero[g(i), o]) * scale[g(i), o]

`transposed_numbers` gives the (in, out) matrix, the order in which codes are stored, so no transposition is paid for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layout import FieldPlanes, codes_of, opened
from .mixed import ExpertMixed, GroupMixed
from .packing import PackedWeight


def transposed_numbers(planes: FieldPlanes, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers that `planes` stands for, shape (in, out), computed in float32 and cast to `dtype`."""
    numbers = codes_of(planes).to(torch.float32)
    size = max(min(planes.group_size, planes.inputs), 1)
    whole = planes.inputs // size * size
    zeros = None if planes.zeros is None else planes.zeros.to(torch.float32)
    scales = planes.scales.to(torch.float32)
    for rows, first, each in ((slice(0, whole), 0, size), (slice(whole, None), whole // size, planes.inputs - whole)):
        part = numbers[rows]
        if part.numel() == 0:
            continue
        part = part.view(-1, each, planes.outputs)
        last = first + part.shape[0]
        part.sub_(2 ** (planes.bits - 1) if zeros is None else zeros[first:last, None, :])
        part.mul_(scales[first:last, None, :])
    return numbers.to(dtype)


def dequantize_transposed(weight: PackedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers that a stored weight stands for, shape (in, out)."""
    return transposed_numbers(opened(weight), dtype)


def dequantize(weight: PackedWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The numbers that a stored weight stands for, shape (out, in)."""
    return dequantize_transposed(weight, dtype).T


def product(x: Tensor, planes: FieldPlanes) -> Tensor:
    """x (rows, in) times the matrix transposed: (rows, out) in x's dtype."""
    return x @ transposed_numbers(planes, x.dtype)


def group_mixed_numbers(mixed: GroupMixed) -> Tensor:
    """The numbers of a matrix of mixed groups, float32, shape (in, out)."""
    size = mixed.classes[0][0].group_size
    numbers = torch.empty(mixed.inputs // size, size, mixed.outputs, device=mixed.classes[0][0].words.device)
    for planes, groups in mixed.classes:
        numbers[groups.long()] = transposed_numbers(planes).view(planes.groups, size, mixed.outputs)
    return numbers.flatten(0, 1)


def group_mixed(x: Tensor, mixed: GroupMixed) -> Tensor:
    """x (rows, in) times the matrix transposed: (rows, out) in x's dtype."""
    return x @ group_mixed_numbers(mixed).to(x.dtype)


def expert_mixed(x: Tensor, experts: ExpertMixed, chosen: Tensor) -> Tensor:
    """Row t * k + j is x[t] (T, in) times the transposed matrix of expert chosen[t, j], for `chosen` (T, k): (T * k, out)."""
    result = x.new_zeros(chosen.numel(), experts.outputs)
    token = torch.arange(chosen.numel(), device=x.device) // max(chosen.shape[1], 1)
    for index in sorted(set(chosen.reshape(-1).tolist())):
        rows = torch.where(chosen.reshape(-1) == index)[0]
        result[rows] = product(x[token[rows]], experts.expert(index))
    return result


def gather_rows(planes: FieldPlanes, rows: Tensor) -> Tensor:
    """Rows of the (out, in) matrix, float32, shape (*rows.shape, in): an embedding lookup that unpacks only what it reads."""
    flat = rows.reshape(-1)
    zeros = None if planes.zeros is None else planes.zeros[:, flat]
    picked = FieldPlanes(planes.words[:, :, flat], planes.fields, planes.inputs, planes.scales[:, flat], zeros, planes.group_size)
    return transposed_numbers(picked).T.reshape(*rows.shape, planes.inputs)
