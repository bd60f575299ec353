"""The back end that needs torch alone: unpack, multiply, forget. Serves every device, at the speed of its matmul at best."""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from .layout import FieldPlanes
from .mixed import ExpertMixed, GroupMixed


def missing(device: torch.device) -> None:
    return None


def product(x: Tensor, planes: FieldPlanes, out_dtype: torch.dtype, deterministic: bool) -> Tensor:
    return reference.product(x, planes).to(out_dtype)


def group_mixed(x: Tensor, mixed: GroupMixed, out_dtype: torch.dtype, deterministic: bool) -> Tensor:
    return reference.group_mixed(x, mixed).to(out_dtype)


def expert_mixed(x: Tensor, experts: ExpertMixed, chosen: Tensor, out_dtype: torch.dtype) -> Tensor:
    return reference.expert_mixed(x, experts, chosen).to(out_dtype)


def transposed_numbers(planes: FieldPlanes) -> Tensor:
    return reference.transposed_numbers(planes)


def transposed_change(planes: FieldPlanes, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return (reference.transposed_numbers(planes) - weight).to(dtype)
