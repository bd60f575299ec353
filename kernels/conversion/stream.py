"""Codes as one stream of bits, the lowest first, which crosses words wherever a width does not divide 32.

Value i has the bits b i .. b i + b - 1 of the stream, and bit p lies in word p // 32 at p % 32: 32 values are b words. Streams
run along the first axis, one for each column.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats import WORD_VALUES


def to_stream(codes: Tensor, bits: int) -> Tensor:
    """Codes (n, columns), integers in [0, 2^bits), to int32 words (ceil(n * bits / 32), columns)."""
    count, columns = codes.shape
    blocks = -(-count // WORD_VALUES)
    padded = torch.zeros(blocks * WORD_VALUES, columns, dtype=torch.int32, device=codes.device)
    padded[:count] = codes
    values = padded.view(blocks, WORD_VALUES, columns)
    words = torch.zeros(blocks, bits, columns, dtype=torch.int32, device=codes.device)
    for value in range(WORD_VALUES):
        word, low = divmod(bits * value, 32)
        words[:, word] |= values[:, value] << low
        if low + bits > 32:
            words[:, word + 1] |= values[:, value] >> (32 - low)
    return words.view(-1, columns)[: -(-count * bits // 32)]


def from_stream(words: Tensor, bits: int, count: int) -> Tensor:
    """The `count` codes of each column, uint8 (count, columns), of words (ceil(count * bits / 32), columns)."""
    columns = words.shape[1]
    blocks = -(-count // WORD_VALUES)
    padded = torch.zeros(blocks * bits, columns, dtype=torch.int32, device=words.device)
    padded[: len(words)] = words
    padded = padded.view(blocks, bits, columns)
    codes = torch.empty(blocks, WORD_VALUES, columns, dtype=torch.uint8, device=words.device)
    for value in range(WORD_VALUES):
        word, low = divmod(bits * value, 32)
        here = min(bits, 32 - low)  # bits of the value in this word; shifts of int32 drag the sign along, so mask
        code = (padded[:, word] >> low) & (2**here - 1)
        if here < bits:
            code |= (padded[:, word + 1] & (2 ** (bits - here) - 1)) << here
        codes[:, value] = code
    return codes.view(-1, columns)[:count]
