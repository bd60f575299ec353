"""Modules that hold packed words and nothing else of a weight.

They stand where `nn.Linear`, `nn.Conv2d` and `nn.Embedding` stood, and compute with the back end that `product.py` picks for
their device; what is unpacked for a call is let go, so memory stays that of the packed words. The tensors of
`PackedWeight` are buffers (`words`, `scales`, `zeros`); modules that share a weight share these tensors. Beside them lie the zero
points as numbers, two bytes each, which are not stored.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .compiling import packed_matmul
from .layout import FieldPlanes, opened
from .packing import PackedWeight
from .product import automatic, dequantized, matmul
from .reference import gather_rows


class _Packed(nn.Module):
    """Holds one PackedWeight as buffers; gives it back as a value."""

    words: Tensor
    scales: Tensor
    zeros: Tensor | None
    zero_points: Tensor | None

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__()
        self.format, self.shape = weight.format, weight.shape
        self.register_buffer("words", weight.words)
        self.register_buffer("scales", weight.scales)
        self.register_buffer("zeros", weight.zeros)
        planes = opened(weight)
        self.fields, self.group_size = planes.fields, planes.group_size
        self.register_buffer("zero_points", planes.zeros, persistent=False)
        self._opened: FieldPlanes | None = None

    @property
    def packed(self) -> PackedWeight:
        return PackedWeight(self.format, self.shape, self.words, self.scales, self.zeros)

    @property
    def planes(self) -> FieldPlanes:
        """The weight as kernels read it, sharing this module's tensors; made anew when they were moved or replaced."""
        words = self.words
        if self._opened is None or self._opened.words is not words:
            self._opened = FieldPlanes(words, self.fields, self.shape[1], self.scales, self.zero_points, self.group_size)
        return self._opened

    @property
    def backend(self) -> str:
        """The name of the back end that computes this module's products."""
        return automatic(self.words.device.type)

    @property
    def weight(self) -> Tensor:
        """Shape and dtype of the weight without its numbers: models ask for `weight.dtype` to cast their inputs."""
        return torch.empty(self.shape, dtype=torch.float32, device="meta")

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        """Scales and zero points are fp16 as stored: `module.to(dtype)` moves them between devices, never to another type."""
        scales, zero_points = self.scales, self.zero_points
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scales = scales.to(self.scales.device)
        self.zero_points = None if zero_points is None else zero_points.to(self.scales.device)
        return self

    def _load_from_state_dict(self, *arguments):  # type: ignore[no-untyped-def]
        """Zero points as numbers follow those that are loaded."""
        super()._load_from_state_dict(*arguments)
        if self.zero_points is not None:
            loaded = opened(self.packed).zeros
            assert loaded is not None
            self.zero_points.copy_(loaded)

    def extra_repr(self) -> str:
        return f"{self.shape[1]} -> {self.shape[0]}, {self.format.name}"


class QuantizedLinear(_Packed):
    """y = x W^T + bias with W packed."""

    def __init__(self, weight: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__(weight)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            widths, lows = [list(column) for column in zip(*self.fields, strict=True)]
            tensors = (self.words, self.scales, self.zero_points)
            y: Tensor = packed_matmul(x, *tensors, widths, lows, self.in_features, self.group_size)
        else:
            y = matmul(x, self.planes)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.backend}"


class QuantizedConv2d(_Packed):
    """A convolution whose kernel is packed as (out, in_per_group * height * width) and unpacked for each call."""

    def __init__(self, weight: PackedWeight, like: nn.Conv2d) -> None:
        super().__init__(weight)
        self.bias = None if like.bias is None else nn.Parameter(like.bias.detach(), requires_grad=False)
        self.kernel_shape = tuple(like.weight.shape)
        self.stride, self.padding, self.dilation, self.groups = like.stride, like.padding, like.dilation, like.groups

    def forward(self, x: Tensor) -> Tensor:
        kernel = dequantized(self.planes, x.dtype).reshape(self.kernel_shape)
        return functional.conv2d(x, kernel, self.bias, self.stride, self.padding, self.dilation, self.groups)


class QuantizedEmbedding(_Packed):
    """A table of (vocabulary, width) whose rows are unpacked as they are looked up, by torch, in the given dtype."""

    def __init__(self, weight: PackedWeight, dtype: torch.dtype) -> None:
        super().__init__(weight)
        self.dtype = dtype

    @property
    def backend(self) -> str:
        return "torch"

    def forward(self, ids: Tensor) -> Tensor:
        return gather_rows(self.planes, ids).to(self.dtype)
