"""The back end `interpret`: the same kernels in Triton's interpreter, on any CPU and very slowly. For tests."""

from __future__ import annotations

import torch

from . import launch

if not launch.ABSENT:
    from .products import expert_mixed, group_mixed, product, transposed_change, transposed_numbers

__all__ = ["expert_mixed", "group_mixed", "missing", "product", "transposed_change", "transposed_numbers"]


def missing(device: torch.device) -> str | None:
    if launch.ABSENT:
        return "Triton cannot be imported; install the package `triton`"
    if device.type != "cpu":
        return "the interpreter is for the CPU; use the back end 'triton'"
    if not launch.INTERPRETED:
        return "set TRITON_INTERPRET=1 before Python starts"
    return None
