"""Codes to 32-bit words and back, 1 to 8 bits: strided field planes.

A matrix of codes has shape (in, out). Its inputs are cut into blocks of 32; a block owns `bits` rows of `out` words, and
nothing crosses a word. Each code is cut into fields of 8, 4, 2 and 1 bits, a field of width w owning w consecutive rows:

    bits  fields (width at lowest bit)      one block of 32 inputs, out words a row
    2     2@0                               row r, field of width w, per = 32 / w values a word:
    3     2@0 1@2                              bits  31 ... w*j .. w*j+w-1 ... 0
    4     4@0                                        |   value r * per + j   |
    5     4@0 1@4
    6     4@0 2@4                           code = sum over fields of (field << lowest bit)
    7     4@0 2@4 1@6
    8     8@0

so `words[block, row, out]` is an int32 tensor of shape (ceil(in / 32), bits, out), the output axis contiguous. For 2, 4
and 8 bits the words are those of ordinary GPTQ checkpoints; for all widths those of GPTQModel's `gptq_p`. Inputs beyond
the last are code 0 and are cut off when unpacking. Zero points are packed the same way, along the output axis.

No field crosses a byte, so words are put together and taken apart byte by byte, lowest first: a vector instruction holds
four times as many bytes as words.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .formats import WORD_VALUES, Format

FIELDS: dict[int, tuple[tuple[int, int], ...]] = {
    1: ((1, 0),),
    2: ((2, 0),),
    3: ((2, 0), (1, 2)),
    4: ((4, 0),),
    5: ((4, 0), (1, 4)),
    6: ((4, 0), (2, 4)),
    7: ((4, 0), (2, 4), (1, 6)),
    8: ((8, 0),),
}


def pack(codes: Tensor, bits: int, fields: tuple[tuple[int, int], ...] | None = None) -> Tensor:
    """Codes of shape (in, out), integers in [0, 2^bits), to int32 words of shape (ceil(in / 32), bits, out); `fields` (None:
    those of FIELDS) are as many (width, lowest bit) as the rows hold in turn.

    Raises ValueError for a width outside 1..8 or a code outside its range.
    """
    if bits not in FIELDS:
        raise ValueError(f"codes of {bits} bits cannot be packed; widths are 1 to 8")
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= 2**bits):
        raise ValueError(f"a code lies outside [0, {2**bits}), the range of {bits} bits")
    inputs, outputs = codes.shape
    blocks = -(-inputs // WORD_VALUES)
    if codes.numel() == 0:
        return torch.zeros(blocks, bits, outputs, dtype=torch.int32, device=codes.device)
    padded = torch.zeros(blocks * WORD_VALUES, outputs, dtype=torch.uint8, device=codes.device)
    padded[:inputs] = codes
    each = torch.zeros(blocks, bits, 4, outputs, dtype=torch.uint8, device=codes.device)  # (block, row, byte, out)
    row = 0
    for width, low in fields or FIELDS[bits]:
        field = (padded >> low).bitwise_and_(2**width - 1).view(blocks, width, 4, 8 // width, outputs)
        for value in range(8 // width):
            each[:, row : row + width].bitwise_or_(field[:, :, :, value] << (width * value))
        row += width
    return each.transpose(2, 3).flatten(2).view(torch.int32)


def unpack(words: Tensor, fields: tuple[tuple[int, int], ...], inputs: int) -> Tensor:
    """The codes, uint8 of shape (inputs, out), whose fields (width, lowest bit) are the rows of `words` in turn.

    `unpack(pack(codes, bits), FIELDS[bits], inputs)` are the codes. Words may be a view: only outputs must be adjacent.
    """
    blocks, rows, outputs = words.shape
    if words.numel() == 0:
        return torch.zeros(inputs, outputs, dtype=torch.uint8, device=words.device)
    if words.stride(-1) != 1:  # of a single output, which any stride fits
        words = words.contiguous()
    each = words.view(torch.uint8).view(blocks, rows, outputs, 4).transpose(2, 3).contiguous()  # (block, row, byte, out)
    codes: Tensor | None = None
    row = 0
    for width, low in fields:
        field = each[:, row : row + width, :, None]
        if width < 8:
            shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=words.device)[:, None]
            field = (field >> shifts).bitwise_and_(2**width - 1)
        field = field.reshape(blocks * WORD_VALUES, outputs)
        if low:
            field = field << low
        codes = field if codes is None else codes.bitwise_or_(field)
        row += width
    assert codes is not None
    return codes[:inputs]


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """An (out, in) matrix in an int format, exactly as stored.

    `words` int32 (ceil(in / 32), bits, out); `scales` fp16 (groups, out); `zeros`, asymmetric formats only, int32 words
    of the (out, groups) zero points, shape (ceil(out / 32), bits, groups).
    """

    format: Format
    shape: tuple[int, int]
    words: Tensor
    scales: Tensor
    zeros: Tensor | None

    @property
    def stored_bytes(self) -> int:
        """Bytes of the tensors held, counted from the tensors."""
        tensors = [self.words, self.scales] + ([] if self.zeros is None else [self.zeros])
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def tensors(self) -> dict[str, Tensor]:
        named = {"words": self.words, "scales": self.scales}
        return named if self.zeros is None else {**named, "zeros": self.zeros}

    def outputs(self, start: int, stop: int) -> PackedWeight:
        """Rows `start` to `stop` of the (out, in) matrix, sharing its tensors. Raises ValueError unless `start` is a
        multiple of 32, the block in which zero points are packed."""
        if start % WORD_VALUES:
            raise ValueError(f"a packed matrix is cut at multiples of {WORD_VALUES} outputs, not at {start}")
        stop = min(stop, self.shape[0])
        zeros = None if self.zeros is None else self.zeros[start // WORD_VALUES : -(-stop // WORD_VALUES)]
        words, scales = self.words[:, :, start:stop], self.scales[:, start:stop]
        return PackedWeight(self.format, (stop - start, self.shape[1]), words, scales, zeros)


def pack_weight(fmt: Format, shape: tuple[int, int], codes: Tensor, scales: Tensor, zeros: Tensor | None) -> PackedWeight:
    """Pack codes (in, out), fp16 scales (groups, out) and, for an asymmetric format, zero points (groups, out)."""
    outputs, inputs = shape
    if tuple(codes.shape) != (inputs, outputs) or tuple(scales.shape) != (fmt.groups(inputs), outputs):
        raise ValueError(
            f"codes {tuple(codes.shape)} and scales {tuple(scales.shape)} do not make a {shape} matrix in {fmt.name}"
        )
    if fmt.symmetric != (zeros is None):
        raise ValueError(f"{fmt.name} {'has no' if fmt.symmetric else 'needs'} zero points")
    packed_zeros = None if zeros is None else pack(zeros.T.contiguous(), fmt.bits)
    return PackedWeight(fmt, shape, pack(codes, fmt.bits), scales.to(torch.float16).contiguous(), packed_zeros)


def unpack_zeros(weight: PackedWeight) -> Tensor | None:
    """Zero points (groups, out) of an asymmetric weight, int32; None for a symmetric one."""
    if weight.zeros is None:
        return None
    zeros = unpack(weight.zeros, FIELDS[weight.format.bits], weight.shape[0])
    return zeros.T.to(torch.int32, memory_format=torch.contiguous_format)
