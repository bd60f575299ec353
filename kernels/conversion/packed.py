"""The format `pack-quantized` of compressed-tensors, for a matrix (out, in) of G groups:

    weight_packed       int32 (out, ceil(in * bits / 32))      codes, each output a stream of bits (`stream.py`) of its own
    weight_scale        any float (out, G)
    weight_zero_point   int32 (ceil(out * bits / 32), G)       asymmetric only: a stream along the outputs for each group
    weight_shape        int64 (2,)                             out, in

There codes and zero points are signed, and stored with 2^(bits - 1) added: as ours are. Until version 0.17 that library put
floor(32 / bits) codes in a word, which at 3, 5, 6 and 7 bits leaves gaps; such tensors are longer and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..layout import FieldPlanes, codes_of, pack
from .checks import demand_groups, demand_multiple, demand_width, inputs_a_group, named, whole_zeros, zeros_of
from .stream import from_stream, to_stream

WIDTHS = (2, 3, 4, 5, 6, 7, 8)


def from_packed(tensors: Mapping[str, Tensor], bits: int, group_size: int | None) -> FieldPlanes:
    """The matrix of `weight_packed`, `weight_scale`, `weight_shape` and, where there is one, `weight_zero_point`. Raises
    ValueError for tensors that do not fit together."""
    demand_width("pack-quantized", bits, WIDTHS)
    words, scale = named(tensors, "weight_packed", torch.int32), named(tensors, "weight_scale")
    if "weight_shape" not in tensors:
        raise ValueError("the tensor 'weight_shape' is missing; it says how many inputs the last word holds")
    outputs, inputs = map(int, tensors["weight_shape"].tolist())
    if tuple(words.shape) != (outputs, -(-inputs * bits // 32)):
        gaps = tuple(words.shape) == (outputs, -(-inputs // (32 // bits)))
        reason = "packed with gaps by a version before 0.18; save it with a newer one" if gaps else "is the width another?"
        raise ValueError(f"weight_packed {tuple(words.shape)} is no stream of {inputs} inputs in {bits} bits: {reason}")
    size = inputs_a_group(group_size, inputs)
    demand_groups(inputs, size)
    zeros = None
    if "weight_zero_point" in tensors:
        packed = named(tensors, "weight_zero_point", torch.int32)
        if tuple(packed.shape) != (-(-outputs * bits // 32), scale.shape[1]):
            raise ValueError(f"weight_zero_point {tuple(packed.shape)} does not go with weight_scale {tuple(scale.shape)}")
        zeros = zeros_of(from_stream(packed, bits, outputs).T, bits, scale.dtype)
    codes = from_stream(words.T, bits, inputs)
    return pack(codes, bits, scale.T.contiguous(), zeros, group_size=size)


def to_packed(planes: FieldPlanes) -> dict[str, Tensor]:
    """`weight_packed`, `weight_scale`, `weight_shape` and, unless symmetric, `weight_zero_point`. Raises ValueError for what
    the format cannot hold."""
    bits = planes.bits
    demand_width("pack-quantized", bits, WIDTHS)
    demand_multiple("pack-quantized", "inputs", planes.inputs, min(planes.group_size, max(planes.inputs, 1)))
    tensors = {
        "weight_packed": to_stream(codes_of(planes), bits).T.contiguous(),
        "weight_scale": planes.scales.T.contiguous(),
        "weight_shape": torch.tensor([planes.outputs, planes.inputs]),
    }
    if planes.zeros is not None:
        zeros = whole_zeros("pack-quantized", planes, 0, "choose the zero points among the codes")
        # Zero points go along the outputs, a stream a group: the other way round than `scales` lie.
        tensors["weight_zero_point"] = to_stream(zeros.T, bits).contiguous()
    return tensors
