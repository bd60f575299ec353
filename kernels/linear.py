"""Modules that hold packed words and nothing else of a weight.

They stand where `nn.Linear`, `nn.Conv2d` and `nn.Embedding` stood. The product is the reference of `reference.py`: the
weight is unpacked for each call and let go, so memory stays that of the packed words. The tensors of `PackedWeight` are
buffers (`words`, `scales`, `zeros`); modules that share a weight share these tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layout import opened
from .packing import PackedWeight
from .reference import dequantize, gather_rows, product

BACKEND = "reference"


class _Packed(nn.Module):
    """Holds one PackedWeight as buffers; gives it back as a value."""

    words: Tensor
    scales: Tensor
    zeros: Tensor | None

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__()
        self.format, self.shape = weight.format, weight.shape
        self.register_buffer("words", weight.words)
        self.register_buffer("scales", weight.scales)
        self.register_buffer("zeros", weight.zeros)

    @property
    def packed(self) -> PackedWeight:
        return PackedWeight(self.format, self.shape, self.words, self.scales, self.zeros)

    @property
    def weight(self) -> Tensor:
        """Shape and dtype of the weight without its numbers: models ask for `weight.dtype` to cast their inputs."""
        return torch.empty(self.shape, dtype=torch.float32, device="meta")

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        """Scales are fp16 as stored: `module.to(dtype)` moves them between devices, never to another type."""
        scales = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scales = scales.to(self.scales.device)
        return self

    def extra_repr(self) -> str:
        return f"{self.shape[1]} -> {self.shape[0]}, {self.format.name}, {BACKEND}"


class QuantizedLinear(_Packed):
    """y = x W^T + bias with W packed."""

    def __init__(self, weight: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__(weight)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        y = product(x, opened(self.packed))
        return y if self.bias is None else y + self.bias


class QuantizedConv2d(_Packed):
    """A convolution whose kernel is packed as (out, in_per_group * height * width)."""

    def __init__(self, weight: PackedWeight, like: nn.Conv2d) -> None:
        super().__init__(weight)
        self.bias = None if like.bias is None else nn.Parameter(like.bias.detach(), requires_grad=False)
        self.kernel_shape = tuple(like.weight.shape)
        self.stride, self.padding, self.dilation, self.groups = like.stride, like.padding, like.dilation, like.groups

    def forward(self, x: Tensor) -> Tensor:
        kernel = dequantize(self.packed, x.dtype).reshape(self.kernel_shape)
        return functional.conv2d(x, kernel, self.bias, self.stride, self.padding, self.dilation, self.groups)


class QuantizedEmbedding(_Packed):
    """A table of (vocabulary, width) whose rows are unpacked as they are looked up, in the given dtype."""

    def __init__(self, weight: PackedWeight, dtype: torch.dtype) -> None:
        super().__init__(weight)
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        return gather_rows(self.packed, ids).to(self.dtype)
