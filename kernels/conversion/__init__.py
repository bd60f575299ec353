"""Packed weights of other programs, read as field planes and written from them.

A layout is a set of tensors by their names in a checkpoint. In every one of them w = (code - zero) * scale with an unsigned
code, so that reading and writing move bits and round nothing:

    name            codes of a word                                            zero points               widths
    gptq            a stream along the inputs; at 2, 4, 8 bits our words       stream, less one          2, 3, 4, 8
    gptq_v2         the same                                                   stream                    2, 3, 4, 8
    gptq_p          our words                                                  fields along the outputs  2 to 8
    awq             eight neighbouring outputs: 0, 2, 4, 6, 1, 3, 5, 7         likewise                  4
    hqq             groups far apart: r, r + R / p, r + 2 R / p, ...           any number                1 to 6, 8
    pack-quantized  a stream along the inputs of one output                    stream                    2 to 8

`pack-quantized` is the format of compressed-tensors. What a layout cannot hold is refused with a ValueError: other
widths, zero points that are not whole, sizes that do not fill its words, inputs in another order than their groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from ..layout import FieldPlanes
from .awq import from_awq, to_awq
from .gptq import from_gptq, to_gptq
from .hqq import from_hqq, to_hqq
from .packed import from_packed, to_packed

__all__ = [
    "LAYOUTS",
    "Layout",
    "from_awq",
    "from_gptq",
    "from_hqq",
    "from_packed",
    "to_awq",
    "to_gptq",
    "to_hqq",
    "to_packed",
]


@dataclass(frozen=True)
class Layout:
    """How one program packs a matrix. `read(tensors, bits, group_size)`: group_size None or -1 is one group for all inputs."""

    widths: tuple[int, ...]
    read: Callable[[Mapping[str, Tensor], int, int | None], FieldPlanes]
    write: Callable[[FieldPlanes], dict[str, Tensor]]


LAYOUTS: dict[str, Layout] = {
    "gptq": Layout((2, 3, 4, 8), from_gptq, to_gptq),
    "gptq_v2": Layout((2, 3, 4, 8), partial(from_gptq, version="gptq_v2"), partial(to_gptq, version="gptq_v2")),
    "gptq_p": Layout((2, 3, 4, 5, 6, 7, 8), partial(from_gptq, version="gptq_p"), partial(to_gptq, version="gptq_p")),
    "awq": Layout((4,), from_awq, to_awq),
    "hqq": Layout((1, 2, 3, 4, 5, 6, 8), from_hqq, to_hqq),
    "pack-quantized": Layout((2, 3, 4, 5, 6, 7, 8), from_packed, to_packed),
}
