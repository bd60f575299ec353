"""A matrix as the arguments of a kernel."""

from __future__ import annotations

from torch import Tensor

from ..layout import FieldPlanes
from .fields import placed


def packed_arguments(planes: FieldPlanes, suffix: str = "") -> dict[str, Tensor | int]:
    """Words, scales and zero points, sizes and strides. With `suffix`, which names then end in, for a kernel that takes several
    matrices, those that may differ among them."""
    scales = planes.scales.contiguous()
    each: dict[str, Tensor | int] = {
        "words_ptr": planes.words,
        "scales_ptr": scales,
        "zeros_ptr": scales if planes.zeros is None else planes.zeros.contiguous(),
        "inputs": planes.inputs,
        "stride_block": planes.words.stride(0),
        "stride_row": planes.words.stride(1),
    }
    if not suffix:
        each |= {"outputs": planes.outputs, "group_size": planes.group_size}
    return {name + suffix: value for name, value in each.items()}


def packed_constants(planes: FieldPlanes, suffix: str = "") -> dict[str, object]:
    """The fields, and the zero point where it is the same everywhere."""
    zero = 2.0 ** (planes.bits - 1) if planes.zeros is None else None
    return {"FIELDS" + suffix: placed(planes.fields), "ZERO" + suffix: zero}
