"""The layout of HQQ (groups along the inputs, its axis 1), for a matrix (out, in) cut into R = out * in / g rows of g inputs:

W_q     (R / p, g)        byte r of a column holds p codes, of the rows r, r + R / p, r + 2 R / p, ..., the first highest
scale   (R, 1)            any float; row o * (in / g) + j is group j of output o
zero    (R, 1)            likewise, not always whole
shape   int64 (2,)        out, in

bits    8, 6, 5    4    2    1    3
p       1          2    4    8    10      at 3 bits int32 instead of bytes, R filled up to a multiple of 10 with zeros
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..layout import FieldPlanes, codes_of, pack
from .checks import demand_groups, demand_multiple, demand_width, inputs_a_group, named, zeros_of

PER_WORD = {1: 8, 2: 4, 3: 10, 4: 2, 5: 1, 6: 1, 8: 1}


def from_hqq(tensors: Mapping[str, Tensor], bits: int, group_size: int | None) -> FieldPlanes:
    """The matrix of `W_q`, `scale`, `zero` and `shape`. Raises ValueError for tensors that do not fit together."""
    demand_width("hqq", bits, tuple(PER_WORD))
    scale, zero = named(tensors, "scale"), named(tensors, "zero")
    packed, per = named(tensors, "W_q", torch.int32 if bits == 3 else torch.uint8), PER_WORD[bits]
    if "shape" not in tensors:
        raise ValueError("the tensor 'shape' is missing; give the matrix's outputs and inputs as HQQ's `shape` does")
    outputs, inputs = map(int, tensors["shape"].tolist())
    size = inputs_a_group(group_size, inputs)
    demand_groups(inputs, size)
    groups = inputs // size
    rows = outputs * groups
    if tuple(packed.shape) != (-(-rows // per), size) or tuple(scale.shape) != (rows, 1) or tuple(zero.shape) != (rows, 1):
        raise ValueError(
            f"W_q {tuple(packed.shape)}, scale {tuple(scale.shape)} and zero {tuple(zero.shape)} are not {rows} groups of {size} "
            f"inputs in {bits} bits, grouped along the inputs"
        )
    codes = torch.cat([(packed >> (bits * place)) & (2**bits - 1) for place in reversed(range(per))])[:rows]
    matrix = codes.to(torch.uint8).view(outputs, inputs).T.contiguous()
    zeros = zeros_of(zero.view(outputs, groups).T, bits, zero.dtype)
    return pack(matrix, bits, scale.view(outputs, groups).T.contiguous(), zeros, group_size=size)


def to_hqq(planes: FieldPlanes) -> dict[str, Tensor]:
    """`W_q`, `scale`, `zero` and `shape`. Raises ValueError for what HQQ cannot hold."""
    bits = planes.bits
    demand_width("hqq", bits, tuple(PER_WORD))
    size = min(planes.group_size, max(planes.inputs, 1))
    demand_multiple("hqq", "inputs", planes.inputs, size)
    rows, per = planes.outputs * planes.groups, PER_WORD[bits]
    if bits != 3:
        demand_multiple("hqq", "groups (of all outputs together)", rows, per)
    steps = -(-rows // per)
    codes = torch.zeros(steps * per, size, dtype=torch.int32 if bits == 3 else torch.uint8, device=planes.words.device)
    codes[:rows] = codes_of(planes).T.reshape(rows, size)
    packed = torch.zeros_like(codes[:steps])
    for place, part in enumerate(codes.view(per, steps, size)):
        packed |= part << (bits * (per - 1 - place))
    zeros = torch.full_like(planes.scales, 2 ** (bits - 1)) if planes.zeros is None else planes.zeros
    return {
        "W_q": packed,
        "scale": planes.scales.T.reshape(rows, 1),
        "zero": zeros.T.reshape(rows, 1),
        "shape": torch.tensor([planes.outputs, planes.inputs]),
    }
