"""float64 wherever a device has it, and on the CPU for devices that have none: Apple's MPS, some of Intel's."""

from __future__ import annotations

import torch
from torch import Tensor

WITHOUT = ("mps",)


def home(device: torch.device) -> torch.device:
    """Where numbers of `device` can be float64: there, or on the CPU."""
    has = device.type not in WITHOUT
    if device.type == "xpu":
        has = bool(torch.xpu.get_device_properties(device).has_fp64)
    return device if has else torch.device("cpu")


def as_float64(tensor: Tensor) -> Tensor:
    """`tensor` in float64, at home."""
    return tensor.to(home(tensor.device)).to(torch.float64)


def sum64(tensor: Tensor, dim: int | None = None) -> Tensor:
    """The sum over all entries, or along `dim`, added up in float64 at home."""
    tensor = tensor.to(home(tensor.device))
    return tensor.sum(dtype=torch.float64) if dim is None else tensor.sum(dim, dtype=torch.float64)
