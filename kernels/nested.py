"""One store, many widths: the first b planes of a matrix in nested order are its model of b bits.

A parent of B bits has codes Q, scale s and zero z; d = B - b planes are left away. Its child of b bits has

    codes        q = Q >> d                                  the first b planes, shared, nothing is copied
    mid-point    s_b = 2^d s                                 a code q stood for 2^d codes Q, the middle one of which is
                 z_b = (z - (2^d - 1) / 2) / 2^d             2^d q + (2^d - 1) / 2
    refitted     s_b = a s,   z_b = mean q + (z - mean Q) / a,   a = cov(q, Q) / var(q)          over each group

The refit is least squares of the parent's numbers on the child's codes: w = s (Q - z) is regressed on q, and s cancels. It
pays at 2 bits and hardly above (relative errors of Gaussian weights in groups of 128 at 2, 3 and 4 bits: 0.385, 0.193 and 0.096
by the mid-point, 0.367, 0.191 and 0.096 refitted). Keeping the parent's zero, z / 2^d, would be almost half a step off everywhere
and, below 6 bits, about twice as far away.

Planes are for storing; kernels compute faster on fields. `to_block_order` repacks the planes that were chosen.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .layout import FieldPlanes, codes_of, nested_fields, pack
from .packing import FIELDS


def narrowed(parent: FieldPlanes, bits: int) -> FieldPlanes:
    """The `bits` highest bits of a parent in nested order, read at the mid-points; the words are the parent's.

    Scales and zeros keep the parent's dtype where it holds them exactly, and are fp32 otherwise: 2^d s may be more than fp16
    holds, and in bf16 z_b could lose the half step that it corrects. Raises ValueError for more bits than there are.
    """
    _check(parent, bits)
    if bits == parent.bits:
        return parent
    return _child(parent, bits, *_mid_points(parent, bits))


def refitted(parent: FieldPlanes, bits: int) -> FieldPlanes:
    """As `narrowed`, with scales and zeros by least squares. A group whose codes q are all alike, which no line can be fitted
    to, keeps its mid-points.

    Scales and zeros are fp16 where the parent's are and the scales are not too large for that, and fp32 otherwise. Raises
    ValueError as `narrowed` does.
    """
    _check(parent, bits)
    if bits == parent.bits:
        return parent
    scales, zeros = _mid_points(parent, bits)
    codes, dropped = codes_of(parent), parent.bits - bits
    steps = torch.full_like(scales, 2.0**dropped)
    means, parent_means = torch.zeros_like(scales), torch.zeros_like(scales)
    varied = torch.zeros_like(scales, dtype=torch.bool)
    for group in range(parent.groups):
        part = codes[group * parent.group_size : (group + 1) * parent.group_size]
        # Sums of whole numbers, exact in float64: variances are zero where they should be.
        whole, top = part.double(), (part >> dropped).double()
        total, whole_total = top.sum(dim=0), whole.sum(dim=0)
        variance = len(top) * top.square().sum(dim=0) - total.square()
        covariance = len(top) * (top * whole).sum(dim=0) - total * whole_total
        varied[group] = variance > 0
        steps[group] = torch.where(varied[group], covariance / variance, steps[group])
        means[group], parent_means[group] = total / len(top), whole_total / len(top)
    fitted = torch.where(varied, steps * parent.scales.double(), scales)
    halves = parent.scales.dtype == torch.float16 and bool((fitted.abs() <= torch.finfo(torch.float16).max).all())
    dtype = torch.float16 if halves else torch.float32
    zeros = torch.where(varied, means + (parent.zero_points.double() - parent_means) / steps, zeros)
    return _child(parent, bits, fitted, zeros, dtype)


def to_block_order(planes: FieldPlanes) -> FieldPlanes:
    """The same codes, scales and zeros in block order, the one that is stored and that kernels are fast on; `planes` itself
    where it is so already."""
    if planes.fields == FIELDS[planes.bits]:
        return planes if planes.words.is_contiguous() else replace(planes, words=planes.words.contiguous())
    return pack(codes_of(planes), planes.bits, planes.scales, planes.zeros, group_size=planes.group_size)


def to_nested_order(planes: FieldPlanes) -> FieldPlanes:
    """The same codes, scales and zeros in planes of one bit, the highest first; `planes` itself where it is so already."""
    if planes.fields == nested_fields(planes.bits) and planes.words.transpose(0, 1).is_contiguous():
        return planes
    return pack(codes_of(planes), planes.bits, planes.scales, planes.zeros, group_size=planes.group_size, order="nested")


def _check(parent: FieldPlanes, bits: int) -> None:
    if parent.fields != nested_fields(parent.bits):
        raise ValueError(f"a matrix with the fields {parent.fields} cannot be narrowed; bring it to nested order first")
    if not 1 <= bits <= parent.bits:
        raise ValueError(f"a parent of {parent.bits} bits holds models of 1 to {parent.bits} bits, not of {bits}")


def _mid_points(parent: FieldPlanes, bits: int) -> tuple[Tensor, Tensor]:
    step = 2.0 ** (parent.bits - bits)
    return parent.scales.double() * step, (parent.zero_points.double() - (step - 1) / 2) / step


def _child(parent: FieldPlanes, bits: int, scales: Tensor, zeros: Tensor, dtype: torch.dtype | None = None) -> FieldPlanes:
    """The first planes with these float64 scales and zeros, in `dtype` (None: the parent's if exact, else fp32)."""
    if dtype is None:
        own = parent.scales.dtype
        exact = all(torch.equal(each.to(own).double(), each) for each in (scales, zeros))
        dtype = own if exact else torch.float32
    words = parent.words[:, :bits]
    return FieldPlanes(words, nested_fields(bits), parent.inputs, scales.to(dtype), zeros.to(dtype), parent.group_size)
