"""Did every product that an executed model computes agree with float64? And how far is each unit from what it was?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.experts import QuantizedExperts
from ..kernels.float64 import as_float64
from ..kernels.linear import QuantizedConv2d, QuantizedEmbedding
from ..kernels.packing import PackedWeight
from ..kernels.product import moe_matmul
from ..kernels.reference import dequantize, transposed_numbers
from .prepared import Prepared

KERNEL_TOLERANCE = 1e-5  # of the largest output, float32 sums against float64


@dataclass(frozen=True)
class KernelCheck:
    """The largest difference between a module's product and the float64 reference, relative to the largest output."""

    unit: str
    backend: str
    max_difference: float
    tolerance: float
    passed: bool


def check_units(prepared: Prepared, module: nn.Module) -> Iterator[KernelCheck]:
    """Each packed module of `module` on random inputs."""
    generator = torch.Generator().manual_seed(0)
    for unit in prepared.loaded.network.inventory.units:
        for matrix in unit.matrices:
            packed = getattr(module.get_submodule(matrix.module), "packed", None)
            if not isinstance(packed, PackedWeight):
                continue
            weight = dequantize(packed)
            for path in (matrix.module, *(unit.shared_with if matrix is unit.matrices[0] else ())):
                used = module.get_submodule(path)
                given, exact = _product(used, weight, generator)
                yield _check(path, str(used.backend), given, exact)


def check_experts(module: nn.Module) -> Iterator[KernelCheck]:
    """The products that all experts of a layer share, every expert chosen by two random tokens."""
    generator = torch.Generator().manual_seed(0)
    for path, layer in module.named_modules():
        if not isinstance(layer, QuantizedExperts):
            continue
        for name, stacked in layer.stacks.items():
            x = torch.randn(2 * stacked.experts, stacked.inputs, generator=generator).to(stacked.words.device)
            chosen = torch.arange(len(x), device=x.device) % stacked.experts
            each = [
                as_float64(x[e :: stacked.experts]) @ as_float64(transposed_numbers(stacked.expert(e)))
                for e in range(stacked.experts)
            ]
            exact = torch.stack(each, dim=1).flatten(0, 1)
            yield _check(f"{path}.{name}, all experts", layer.backend, moe_matmul(x, stacked, chosen[:, None]), exact)


def unit_errors(prepared: Prepared, module: nn.Module) -> dict[str, float]:
    """||W - W_format||^2 / ||W||^2 of each unit."""
    errors = {}
    untouched = prepared.loaded.network.module
    for unit in prepared.loaded.network.inventory.units:
        lost = total = 0.0
        for matrix in unit.matrices:
            holder = module.get_submodule(matrix.module)
            original = untouched.get_parameter(f"{matrix.module}.weight").flatten(1)
            packed = getattr(holder, "packed", None)
            held = dequantize(packed) if isinstance(packed, PackedWeight) else holder.get_parameter("weight").flatten(1)
            lost += float((held - original).square().sum())
            total += float(original.square().sum())
        errors[unit.name] = lost / total if total else 0.0
    return errors


def _check(unit: str, backend: str, given: Tensor, exact: Tensor) -> KernelCheck:
    difference = float((as_float64(given) - exact).abs().max() / exact.abs().max().clamp_min(1e-30))
    return KernelCheck(unit, backend, difference, KERNEL_TOLERANCE, difference <= KERNEL_TOLERANCE)


def _product(holder: nn.Module, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What a packed module gives for random inputs, and what float64 gives with `weight`, its numbers, for the same."""
    if isinstance(holder, QuantizedEmbedding):
        ids = torch.randint(len(weight), (8,), generator=generator).to(weight.device)
        return holder(ids), as_float64(weight[ids])
    bias = as_float64(holder.bias) if isinstance(holder.bias, Tensor) else None
    if isinstance(holder, QuantizedConv2d):
        kernel = as_float64(weight).reshape(holder.kernel_shape)
        sides = [step * (size - 1) + 3 for size, step in zip(kernel.shape[2:], holder.dilation, strict=True)]
        x = torch.randn(2, kernel.shape[1] * holder.groups, *sides, generator=generator).to(weight.device)
        settings: Any = (holder.stride, holder.padding, holder.dilation, holder.groups)
        return holder(x), functional.conv2d(as_float64(x), kernel, bias, *settings)
    x = torch.randn(2, weight.shape[1], generator=generator).to(weight.device)
    return holder(x), functional.linear(as_float64(x), as_float64(weight), bias)
