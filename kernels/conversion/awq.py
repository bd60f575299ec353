"""The layout of AWQ checkpoints (4 bits), for a matrix (out, in) of G groups:

    qweight  int32 (in, out / 8)      codes of eight neighbouring outputs a word
    qzeros   int32 (G, out / 8)       zero points likewise
    scales   fp16 or bf16 (G, out)

Bits 4 j .. 4 j + 3 of a word hold output ORDER[j] of its eight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..layout import FieldPlanes, codes_of, pack
from .checks import demand_multiple, demand_width, half_scales, inputs_a_group, named, whole_zeros, zeros_of
from .stream import from_stream, to_stream

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
BITS = 4
PER_WORD = 32 // BITS


def from_awq(tensors: Mapping[str, Tensor], bits: int, group_size: int | None) -> FieldPlanes:
    """The matrix of `qweight`, `qzeros` and `scales`. Raises ValueError for tensors that do not fit together."""
    demand_width("awq", bits, (BITS,))
    qweight, qzeros = named(tensors, "qweight", torch.int32), named(tensors, "qzeros", torch.int32)
    scales = named(tensors, "scales")
    inputs, words = qweight.shape
    size = inputs_a_group(group_size, inputs)
    groups = -(-inputs // size)
    if tuple(qzeros.shape) != (groups, words) or tuple(scales.shape) != (groups, words * PER_WORD):
        raise ValueError(
            f"qzeros {tuple(qzeros.shape)} and scales {tuple(scales.shape)} do not go with {inputs} inputs in {groups} groups "
            f"and {words * PER_WORD} outputs; is the group size another?"
        )
    zeros = zeros_of(_values(qzeros), bits, scales.dtype)
    return pack(_values(qweight), bits, scales, zeros, group_size=size)


def to_awq(planes: FieldPlanes) -> dict[str, Tensor]:
    """`qweight`, `qzeros` and `scales`. Raises ValueError for what AWQ cannot hold."""
    demand_width("awq", planes.bits, (BITS,))
    demand_multiple("awq", "outputs", planes.outputs, PER_WORD)
    zeros = whole_zeros("awq", planes, 0, "choose the zero points among the codes")
    return {
        "qweight": _words(codes_of(planes)),
        "qzeros": _words(zeros),
        "scales": half_scales("awq", planes.scales),
    }


def _words(values: Tensor) -> Tensor:
    """Values (rows, out) to int32 words (rows, out / 8)."""
    ordered = values.view(len(values), -1, PER_WORD)[:, :, list(ORDER)].flatten(1)
    return to_stream(ordered.T, BITS).T.contiguous()


def _values(words: Tensor) -> Tensor:
    """Words (rows, out / 8) to values, uint8 (rows, out)."""
    ordered = from_stream(words.T, BITS, words.shape[1] * PER_WORD).T
    places = [ORDER.index(output) for output in range(PER_WORD)]
    return ordered.reshape(len(words), -1, PER_WORD)[:, :, places].flatten(1)
