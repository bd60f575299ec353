"""Formats: the named ways to store a weight, and their exact bytes.

A weight is a matrix of shape (out, in). A *float* format stores each entry as it is (or cast); an *int* format stores
a code of `bits` bits for each entry, one scale for each row and group of `group_size` consecutive inputs, and, when
asymmetric, one zero point of `bits` bits beside each scale. The number that a code stands for is

    w = (code - zero) * scale          symmetric: zero = 2^(bits - 1) for every group, stored nowhere

This file knows bytes only and imports nothing; `packing.py` makes the tensors whose bytes are counted here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCALE_BYTES = 2  # fp16
WORD_BYTES = 4  # codes and zero points are packed into 32-bit words
WORD_VALUES = 32  # and padded to whole blocks of 32 values

FLOAT_BITS = {"bf16": 16, "fp16": 16, "fp32": 32}


@dataclass(frozen=True)
class Format:
    """A way to store a weight. The name follows from the fields and `parse` reads it back."""

    family: Literal["float", "int"]
    bits: int
    group_size: int | None = None  # None: one group a row
    symmetric: bool = True
    float_name: str = ""

    @property
    def name(self) -> str:
        if self.family == "float":
            return self.float_name
        group = "row" if self.group_size is None else f"g{self.group_size}"
        return f"int{self.bits}-{group}" + ("" if self.symmetric else "-asym")

    def groups(self, in_features: int) -> int:
        """Scales a row: ceil(in / group_size), at least one for a non-empty row."""
        return min(in_features, 1) if self.group_size is None else -(-in_features // self.group_size)

    def parts_bytes(self, shape: tuple[int, int]) -> dict[str, int]:
        """Stored bytes of an (out, in) matrix by part: `codes`, `scales`, `zeros`, padding included.

        >>> Format("int", 4, 64, symmetric=False).parts_bytes((576, 576))
        {'codes': 165888, 'scales': 10368, 'zeros': 2592}
        """
        out_features, in_features = shape
        if self.family == "float":
            return {"codes": out_features * in_features * self.bits // 8, "scales": 0, "zeros": 0}
        groups = self.groups(in_features)
        blocks = -(-in_features // WORD_VALUES)
        zero_blocks = 0 if self.symmetric else -(-out_features // WORD_VALUES)
        return {
            "codes": WORD_BYTES * self.bits * blocks * out_features,
            "scales": SCALE_BYTES * groups * out_features,
            "zeros": WORD_BYTES * self.bits * zero_blocks * groups,
        }

    def stored_bytes(self, shape: tuple[int, int]) -> int:
        """Stored bytes of an (out, in) matrix: codes, scales, zero points and padding."""
        return sum(self.parts_bytes(shape).values())

    def bits_per_weight(self, shape: tuple[int, int]) -> float:
        """Stored bits a weight of an (out, in) matrix; at least `bits`."""
        return 8 * self.stored_bytes(shape) / (shape[0] * shape[1])


def parse(name: str) -> Format:
    """The format called `name`, e.g. `int4-g128`, `int3-row-asym`, `bf16`.

    Raises KeyError, listing the known names, for any other name.
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise KeyError(f"unknown format {name!r}; known: {', '.join(FORMATS)}") from None


FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in (
        *(Format("float", bits, float_name=name) for name, bits in FLOAT_BITS.items()),
        *(
            Format("int", bits, group_size, symmetric)
            for bits in range(2, 9)
            for group_size in (32, 64, 128, None)
            for symmetric in (True, False)
        ),
    )
}
