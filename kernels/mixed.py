"""Matrices in several widths at once: by groups of inputs, and by experts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .formats import WORD_VALUES
from .layout import FieldPlanes, pack
from .packing import FIELDS

MOST_CLASSES = 3  # widths within one matrix of mixed groups: each is a loop of its own in every kernel


@dataclass(frozen=True, eq=False)
class GroupMixed:
    """An (out, in) matrix whose groups of `group_size` inputs are stored in up to three widths.

    `classes` holds, for each width, its groups side by side as one matrix of (out, count * group_size) and their
    numbers, int32 (count,), in the order of the inputs. Every group 0 .. groups - 1 stands in one class. Raises ValueError.
    """

    classes: tuple[tuple[FieldPlanes, Tensor], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MOST_CLASSES:
            raise ValueError(f"a matrix holds groups of 1 to {MOST_CLASSES} widths, not {len(self.classes)}")
        first = self.classes[0][0]
        for planes, numbers in self.classes:
            alike = planes.outputs == first.outputs and planes.group_size == first.group_size
            if planes.inputs != planes.groups * planes.group_size:
                raise ValueError(f"a class of {planes.groups} groups of {planes.group_size} inputs holds {planes.inputs} inputs")
            if not alike or numbers.dtype != torch.int32 or tuple(numbers.shape) != (planes.groups,):
                raise ValueError("the classes of a matrix differ in outputs or group size, or a group lacks its number")
        found = torch.cat([numbers for _, numbers in self.classes]).sort().values
        if not torch.equal(found.cpu(), torch.arange(len(found), dtype=torch.int32)):
            raise ValueError("every group of inputs must stand in exactly one class")

    @property
    def inputs(self) -> int:
        return sum(planes.inputs for planes, _ in self.classes)

    @property
    def outputs(self) -> int:
        return self.classes[0][0].outputs

    @property
    def device(self) -> torch.device:
        return self.classes[0][0].device


def pack_groups(codes: Tensor, bits: list[int], scales: Tensor, zeros: Tensor | None, group_size: int) -> GroupMixed:
    """Codes (in, out) whose group g, of `group_size` inputs, has `bits[g]` bits; scales and zeros (groups, out). The inputs are a
    whole number of groups. Raises ValueError."""
    if not bits or codes.shape[0] != len(bits) * group_size:
        raise ValueError(f"{len(bits)} groups of {group_size} inputs are not {codes.shape[0]} inputs")
    grouped = codes.view(len(bits), group_size, codes.shape[1])
    classes = []
    for width in sorted(set(bits)):
        numbers = torch.tensor([g for g, each in enumerate(bits) if each == width], device=codes.device)
        part = grouped[numbers].flatten(0, 1)
        own_zeros = None if zeros is None else zeros[numbers]
        classes.append((pack(part, width, scales[numbers], own_zeros, group_size=group_size), numbers.to(torch.int32)))
    return GroupMixed(tuple(classes))


@dataclass(frozen=True, eq=False)
class ExpertMixed:
    """E matrices (out, in), each in block order in a width of its own, in one buffer.

    `words` int32, flat; expert e's begin at word `base[e]` (int64) and take ceil(in / 32) * bits[e] * out of them. `bits` int32
    (E,); `scales` and `zeros` (E, groups, out), zeros None standing for 2^(bits[e] - 1). `widths` are the bits that occur, in
    order; they stand apart from `bits` so that no kernel launch waits for the device. Raises ValueError.
    """

    words: Tensor
    base: Tensor
    bits: Tensor
    widths: tuple[int, ...]
    inputs: int
    scales: Tensor
    zeros: Tensor | None
    group_size: int

    def __post_init__(self) -> None:
        experts, groups, outputs = self.scales.shape
        if self.words.dtype != torch.int32 or self.words.dim() != 1 or not self.words.is_contiguous():
            raise ValueError("the experts' words must be one flat int32 buffer")
        if tuple(self.base.shape) != (experts,) or tuple(self.bits.shape) != (experts,):
            raise ValueError(f"{experts} experts need as many bases and widths")
        if self.base.dtype != torch.int64 or self.bits.dtype != torch.int32:
            raise ValueError(f"bases must be int64 and widths int32, not {self.base.dtype} and {self.bits.dtype}")
        if groups != -(-self.inputs // self.group_size) or (self.zeros is not None and self.zeros.shape != self.scales.shape):
            raise ValueError("scales and zeros must be (experts, groups, out), both alike")
        bits = self.bits.tolist()
        if tuple(sorted(set(bits))) != self.widths or not all(width in FIELDS for width in bits):
            raise ValueError(f"widths {self.widths} are not those of the experts, {sorted(set(bits))}, or not within 1 to 8")
        each = [-(-self.inputs // WORD_VALUES) * width * outputs for width in bits]
        if any(base < 0 or base + size > len(self.words) for base, size in zip(self.base.tolist(), each, strict=True)):
            raise ValueError("an expert's words lie outside the buffer: it is damaged, or of other widths")

    @property
    def experts(self) -> int:
        return int(self.scales.shape[0])

    @property
    def outputs(self) -> int:
        return int(self.scales.shape[2])

    @property
    def stored_bytes(self) -> int:
        """Bytes of the words, scales and zero points held."""
        tensors = [self.words, self.scales] + ([] if self.zeros is None else [self.zeros])
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def expert(self, index: int) -> FieldPlanes:
        """Expert `index` alone, sharing the tensors."""
        bits, base = int(self.bits[index]), int(self.base[index])
        blocks = -(-self.inputs // WORD_VALUES)
        words = self.words[base : base + blocks * bits * self.outputs].view(blocks, bits, self.outputs)
        zeros = None if self.zeros is None else self.zeros[index]
        return FieldPlanes(words, FIELDS[bits], self.inputs, self.scales[index], zeros, self.group_size)


def stack_experts(experts: list[FieldPlanes]) -> ExpertMixed:
    """Matrices of one shape, each in block order, as one buffer; where group sizes differ, scales of larger groups are repeated.

    Raises ValueError for no expert, for shapes or dtypes that differ, and for groups that are no multiple of the smallest.
    """
    if not experts:
        raise ValueError("there is no expert to stack")
    size = min(each.group_size for each in experts)
    experts = [_in_groups(each, size) for each in experts]
    first = experts[0]
    for index, each in enumerate(experts):
        if each.fields != FIELDS[each.bits]:
            raise ValueError(f"expert {index} is not in block order")
        if (each.inputs, each.outputs) != (first.inputs, first.outputs):
            raise ValueError(f"expert {index} differs from the first in shape; stack only what is alike")
        if each.scales.dtype != first.scales.dtype:
            raise ValueError(f"expert {index} has scales in {each.scales.dtype}, the first in {first.scales.dtype}; cast them")
    sizes = torch.tensor([0, *(each.words.numel() for each in experts)], dtype=torch.int64)
    zeros = None
    if any(each.zeros is not None for each in experts):
        zeros = torch.stack([each.zero_points for each in experts])
    return ExpertMixed(
        torch.cat([each.words.contiguous().view(-1) for each in experts]),
        sizes.cumsum(0)[:-1].to(first.words.device),
        torch.tensor([each.bits for each in experts], dtype=torch.int32, device=first.words.device),
        tuple(sorted({each.bits for each in experts})),
        first.inputs,
        torch.stack([each.scales for each in experts]),
        zeros,
        first.group_size,
    )


def _in_groups(planes: FieldPlanes, size: int) -> FieldPlanes:
    """The same matrix with a scale for each run of `size` inputs."""
    if planes.group_size == size:
        return planes
    if size >= planes.inputs:
        return replace(planes, group_size=size)
    if size % WORD_VALUES or (planes.group_size % size and planes.group_size < planes.inputs):
        raise ValueError(f"groups of {planes.group_size} inputs cannot be cut into groups of {size}")
    group = torch.arange(0, planes.inputs, size, device=planes.words.device) // planes.group_size
    zeros = None if planes.zeros is None else planes.zeros[group]
    return FieldPlanes(planes.words, planes.fields, planes.inputs, planes.scales[group], zeros, size)
