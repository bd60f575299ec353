"""What several layouts ask of their tensors, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..layout import FieldPlanes


def named(tensors: Mapping[str, Tensor], name: str, *dtypes: torch.dtype) -> Tensor:
    """The matrix called `name`. Raises ValueError where it is missing, has another dtype, or is no matrix."""
    if name not in tensors:
        raise ValueError(f"the tensor {name!r} is missing; there are: {', '.join(sorted(tensors)) or 'none'}")
    tensor = tensors[name]
    if tensor.dim() != 2 or (dtypes and tensor.dtype not in dtypes):
        wanted = " or ".join(map(str, dtypes)) or "numbers"
        raise ValueError(f"{name} must be a matrix of {wanted}, not {tensor.dtype} {tuple(tensor.shape)}")
    return tensor


def inputs_a_group(group_size: int | None, inputs: int) -> int:
    """Inputs a group, where None and -1 mean all of them. Raises ValueError for a group of none."""
    if group_size is None or group_size == -1:
        return max(inputs, 1)
    if group_size < 1:
        raise ValueError(f"a group has at least one input, not {group_size}; None and -1 mean all inputs")
    return group_size


def demand_width(layout: str, bits: int, widths: tuple[int, ...]) -> None:
    if bits not in widths:
        raise ValueError(f"{layout} has no codes of {bits} bits, only of {', '.join(map(str, widths))}; choose another layout")


def demand_multiple(layout: str, what: str, size: int, of: int) -> None:
    if size % of:
        raise ValueError(f"{layout} needs a multiple of {of} {what}, not {size}; choose another layout or pad the matrix")


def demand_groups(inputs: int, group_size: int) -> None:
    """For what is read: there are no shorter groups in this layout."""
    if inputs % group_size:
        raise ValueError(f"{inputs} inputs are no whole number of groups of {group_size}; is the group size another?")


def zeros_of(zeros: Tensor, bits: int, dtype: torch.dtype) -> Tensor | None:
    """Zero points (groups, out) as `FieldPlanes` holds them: None where all are 2^(bits - 1)."""
    return None if bool((zeros == 2 ** (bits - 1)).all()) else zeros.to(dtype).contiguous()


def whole_zeros(layout: str, planes: FieldPlanes, lowest: int, remedy: str) -> Tensor:
    """The zero points (groups, out), uint8 in [lowest, 2^bits). Raises ValueError, naming the first that lies elsewhere."""
    middle = 2 ** (planes.bits - 1)
    if planes.zeros is None:
        return torch.full_like(planes.scales, middle, dtype=torch.uint8)
    zeros = planes.zeros.float()
    fits = (zeros == zeros.round()) & (zeros >= lowest) & (zeros < 2 * middle)
    if not bool(fits.all()):
        group, output = (~fits).nonzero()[0].tolist()
        raise ValueError(
            f"{layout} holds whole zero points from {lowest} to {2 * middle - 1}, not {float(zeros[group, output])} "
            f"(group {group}, output {output}); {remedy}"
        )
    return zeros.to(torch.uint8)


def half_scales(layout: str, scales: Tensor) -> Tensor:
    """Scales in 16 bits: fp32 becomes fp16 where that is exact. Raises ValueError where it is not."""
    if scales.dtype != torch.float32:
        return scales
    halves = scales.half()
    if not torch.equal(halves.float(), scales):
        raise ValueError(f"{layout} holds scales of 16 bits and these are fp32; round them to fp16 before the codes are chosen")
    return halves
