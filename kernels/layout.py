"""What a matrix product reads: codes as field planes, with the scale and the zero point of every group.

`packing.py` says how codes become words, `PackedWeight` how a weight is stored. `FieldPlanes` is the same matrix opened for
computing, and more general. Zero points are numbers beside the scales, not always whole. The order of the planes in
memory is told by the strides of a torch tensor, so that one kernel reads all of these:

    words int32 (ceil(in / 32), rows, out), the output axis contiguous        word of (block, row, out) at
    block order, as stored; GPTQ's words at 2, 4, 8 bits; `gptq_p`            block * rows * out + row * out + o
    nested order: planes of one bit, the highest first                       row * blocks * out + block * out + o
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .formats import WORD_VALUES
from .packing import FIELDS, PackedWeight, unpack, unpack_zeros
from .packing import pack as pack_words

Fields = tuple[tuple[int, int], ...]
SCALE_TYPES = (torch.float16, torch.bfloat16, torch.float32)


def nested_fields(bits: int) -> Fields:
    """Planes of one bit, the highest first: the first b of them are the codes' b highest bits."""
    return tuple((1, low) for low in reversed(range(bits)))


@dataclass(frozen=True, eq=False)
class FieldPlanes:
    """W of shape (out, in) with W[o, i] = (code[i, o] - zero[g, o]) * scale[g, o], g = i // group_size.

    `words` int32 (ceil(in / 32), rows, out), any strides with outputs adjacent; `fields` the (width, lowest bit) that the rows
    hold in turn. `scales` and `zeros` (groups, out), both of one of SCALE_TYPES; zeros None stands for 2^(bits - 1)
    everywhere. `group_size` is a multiple of 32, or at least `inputs`. Raises ValueError for anything else.
    """

    words: Tensor
    fields: Fields
    inputs: int
    scales: Tensor
    zeros: Tensor | None
    group_size: int

    def __post_init__(self) -> None:
        blocks, rows = -(-self.inputs // WORD_VALUES), sum(width for width, _ in self.fields)
        outputs = self.words.shape[-1]
        if rows > 8 or any(width not in (1, 2, 4, 8) or not 0 <= low <= 8 - width for width, low in self.fields):
            raise ValueError(f"fields {self.fields} are not of 1, 2, 4 or 8 bits within 8; see `FIELDS` and `nested_fields`")
        if self.words.dtype != torch.int32 or tuple(self.words.shape) != (blocks, rows, outputs):
            raise ValueError(
                f"{self.inputs} inputs in {rows} bits need int32 words of shape ({blocks}, {rows}, out), "
                f"not {self.words.dtype} {tuple(self.words.shape)}: the buffer is damaged or of another width"
            )
        if outputs > 1 and self.words.stride(-1) != 1:
            raise ValueError("words of neighbouring outputs must lie side by side; make the words contiguous")
        if self.group_size < 1 or (self.group_size % WORD_VALUES and self.group_size < self.inputs):
            raise ValueError(f"a group of {self.group_size} inputs is not a multiple of {WORD_VALUES} and less than a row")
        expected = (-(-self.inputs // self.group_size), outputs)
        for name, tensor in (("scales", self.scales), ("zeros", self.zeros)):
            if tensor is None:
                continue
            if tuple(tensor.shape) != expected or tensor.dtype not in SCALE_TYPES or tensor.dtype != self.scales.dtype:
                raise ValueError(
                    f"{name} must be (groups, out) = {expected} in fp16, bf16 or fp32, both alike, not {tensor.dtype} "
                    f"{tuple(tensor.shape)}"
                )
            if tensor.device != self.words.device:
                raise ValueError(f"words are on {self.words.device} and {name} on {tensor.device}; move them to one device")

    @property
    def bits(self) -> int:
        return sum(width for width, _ in self.fields)

    @property
    def outputs(self) -> int:
        return int(self.words.shape[2])

    @property
    def groups(self) -> int:
        return int(self.scales.shape[0])

    @property
    def device(self) -> torch.device:
        return self.words.device

    @property
    def stored_bytes(self) -> int:
        """Bytes of the tensors held, views counted as what they show."""
        tensors = [self.words, self.scales] + ([] if self.zeros is None else [self.zeros])
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @property
    def zero_points(self) -> Tensor:
        """Zero points (groups, out), those that `zeros` None stands for written out."""
        return torch.full_like(self.scales, 2 ** (self.bits - 1)) if self.zeros is None else self.zeros

    def to(self, device: torch.device | str) -> FieldPlanes:
        """The same matrix on `device`."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return FieldPlanes(self.words.to(device), self.fields, self.inputs, self.scales.to(device), zeros, self.group_size)


def pack(
    codes: Tensor,
    bits: int,
    scales: Tensor,
    zeros: Tensor | None = None,
    *,
    group_size: int | None = None,
    order: Literal["block", "nested"] = "block",
) -> FieldPlanes:
    """Codes (in, out), integers in [0, 2^bits), with `scales` and `zeros` (groups, out), as field planes; `group_size` None: one
    group for all inputs.

    Raises ValueError for widths outside 1..8, codes outside their range, and shapes that do not agree.
    """
    if codes.dim() != 2 or codes.is_floating_point():
        raise ValueError(f"codes must be integers of shape (in, out), not {codes.dtype} {tuple(codes.shape)}")
    inputs = codes.shape[0]
    size = max(inputs, 1) if group_size is None else group_size
    if order == "block":
        return FieldPlanes(pack_words(codes, bits), FIELDS[bits], inputs, scales, zeros, size)
    if order != "nested":
        raise ValueError(f"unknown order {order!r} of planes; known: block, nested")
    fields = nested_fields(bits)
    words = pack_words(codes, bits, fields).transpose(0, 1).contiguous().transpose(0, 1)
    return FieldPlanes(words, fields, inputs, scales, zeros, size)


def opened(weight: PackedWeight) -> FieldPlanes:
    """A stored weight as kernels read it: words and scales shared, zero points unpacked to the scales' dtype."""
    fmt, (_, inputs) = weight.format, weight.shape
    zeros = unpack_zeros(weight)
    return FieldPlanes(
        weight.words,
        FIELDS[fmt.bits],
        inputs,
        weight.scales,
        None if zeros is None else zeros.to(weight.scales.dtype),
        max(inputs, 1) if fmt.group_size is None else fmt.group_size,
    )


def codes_of(planes: FieldPlanes) -> Tensor:
    """The codes, uint8 of shape (in, out)."""
    return unpack(planes.words, planes.fields, planes.inputs)
