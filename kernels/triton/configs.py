"""Which tile a kernel works on, by its name, the width of the codes and the rows of the activations.

    gemv          1 to 4 rows, sums in float32
    gemm          more rows, on tensor cores in 16 bits; gemm32: the same for float32 activations
    experts       rows of many experts; experts32
    dequantize    the matrix written out, for `torch.matmul`, where there are so many rows that unpacking for every tile of
                  rows costs more

The first line that fits is taken. A tile never reaches over two groups, so a group's scales are read once for each tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..formats import WORD_VALUES


@dataclass(frozen=True)
class Tile:
    """What one program computes: `rows` of the activations by `outputs`, `inputs` at a time, all powers of two."""

    rows: int
    outputs: int
    inputs: int
    warps: int
    stages: int


WIDTHS = tuple(range(1, 9))
# kernel, bits, rows of activations up to, tile
TABLE = (
    ("gemv", WIDTHS, 1, Tile(1, 128, 64, 4, 2)),
    ("gemv", WIDTHS, 4, Tile(1, 128, 32, 4, 2)),  # 64 inputs of four rows are more than the registers hold
    ("gemm", WIDTHS, 16, Tile(16, 64, 128, 4, 3)),
    ("gemm", WIDTHS, 32, Tile(32, 64, 128, 4, 3)),
    ("gemm", WIDTHS, 64, Tile(64, 128, 64, 4, 3)),
    ("gemm32", WIDTHS, 16, Tile(16, 64, 32, 4, 2)),
    ("gemm32", WIDTHS, 64, Tile(32, 64, 32, 4, 2)),
    ("experts", WIDTHS, 16, Tile(16, 64, 128, 4, 3)),
    ("experts", WIDTHS, 32, Tile(32, 64, 128, 4, 3)),
    ("experts", WIDTHS, 64, Tile(64, 128, 64, 4, 3)),
    ("experts32", WIDTHS, 16, Tile(16, 64, 32, 4, 2)),
    ("experts32", WIDTHS, 64, Tile(32, 64, 32, 4, 2)),
    ("dequantize", WIDTHS, 1, Tile(1, 128, 64, 4, 1)),
)
MOST_GEMV_ROWS = 4
# From more rows on the matrix is written out first: 2.5 times the rows at which an H100's tensor cores and not its memory set
# the time, 42 (bits + 1/4). float32 has no tensor cores to gain from.
MOST_ROWS = {1: 64, 2: 96, 3: 128, 4: 192, 5: 224, 6: 256, 7: 288, 8: 320}
MOST_ROWS_32 = 64
GEMV_WAVES, GEMM_WAVES, MOST_GEMM_SPLIT = 4, 2, 8  # programs a processor, and the parts that a GEMM's inputs are cut into


@dataclass(frozen=True)
class Choice:
    """`kernel` on `tile`; the inputs are cut into `split` parts that are summed up afterwards."""

    kernel: str
    tile: Tile
    split: int = 1


def tile(kernel: str, bits: int, rows: int) -> Tile:
    """The line of TABLE; more rows than the last line has are cut into tiles of it."""
    fitting = [each for name, widths, most, each in TABLE if name == kernel and bits in widths and rows <= most]
    return fitting[0] if fitting else [each for name, widths, _, each in TABLE if name == kernel and bits in widths][-1]


def within_groups(chosen: Tile, inputs: int, group_size: int, groups: int) -> Tile:
    """The tile with as many inputs as lie in one group, a power of two from 32 on."""
    most = min(chosen.inputs, max(WORD_VALUES, 1 << (inputs - 1).bit_length()))
    return replace(chosen, inputs=most if groups == 1 else math.gcd(most, group_size))


def select(
    bits: int, rows: int, inputs: int, outputs: int, group_size: int, groups: int, single: bool, processors: int
) -> Choice:
    """For `rows` of activations, float32 where `single`, times a matrix of `bits` a code, on a device of so many processors."""
    if rows > (MOST_ROWS_32 if single else MOST_ROWS[bits]):
        return Choice("dequantize", within_groups(tile("dequantize", bits, 1), inputs, group_size, groups))
    kernel = "gemv" if rows <= MOST_GEMV_ROWS else "gemm32" if single else "gemm"
    chosen = within_groups(tile(kernel, bits, rows), inputs, group_size, groups)
    steps = -(-inputs // chosen.inputs)
    tiles = -(-outputs // chosen.outputs)
    if kernel == "gemv":
        return Choice(kernel, chosen, min(-(-GEMV_WAVES * processors // tiles), steps))
    tiles *= -(-rows // chosen.rows)
    return Choice(kernel, chosen, min(-(-GEMM_WAVES * processors // tiles), steps, MOST_GEMM_SPLIT))


def every() -> Iterator[tuple[str, int, Tile]]:
    """Every (kernel, bits, tile) that can be chosen, for compiling them all ahead of time."""
    seen = set()
    for kernel, widths, _, most in TABLE:
        for bits in widths:
            inputs = most.inputs
            while inputs >= WORD_VALUES:
                each = (kernel, bits, replace(most, inputs=inputs))
                if each not in seen:
                    seen.add(each)
                    yield each
                inputs //= 2
