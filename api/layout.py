"""Where each unit of a plan stands on the bit map: layers one way, roles the other, experts inside their cell.

Read off the units' names alone, since a plan carries no more: the first whole number in a dotted path counts layers, what
stands before it names the stack, what follows names the role, and `experts.N` in the role counts experts.

    model.layers.3.self_attn.q_proj       stack model.layers, layer 3, role self_attn.q_proj
    model.layers.3.mlp.experts.7          stack model.layers, layer 3, role mlp.experts, expert 7
    lm_head                               no layer: stands outside the stacks
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..allocator import Plan

CLASSES = (1, 2, 3, 4, 5, 6, 7, 8, 16)


@dataclass(frozen=True)
class Cell:
    """One unit on the map; `bits` are those of a code, or of the float."""

    unit: str
    format: str
    bits: int
    expert: int | None = None

    @property
    def style(self) -> str:
        return bits_class(self.bits)


@dataclass(frozen=True)
class Stack:
    """A run of layers; `cells[(layer, role)]` holds one cell, or one for each expert in order."""

    name: str
    layers: tuple[int, ...]
    roles: tuple[str, ...]
    cells: dict[tuple[int, str], tuple[Cell, ...]]


@dataclass(frozen=True)
class BitMap:
    stacks: tuple[Stack, ...]
    outside: tuple[Cell, ...]

    def counts(self) -> list[tuple[Cell, int]]:
        """The bits in use, fewest first: a cell that has them, and how many have."""
        cells = [cell for stack in self.stacks for group in stack.cells.values() for cell in group] + list(self.outside)
        samples = {cell.bits: cell for cell in cells}
        return [(samples[bits], count) for bits, count in sorted(Counter(cell.bits for cell in cells).items())]


def bits_class(bits: int) -> str:
    """The style class of a number of bits: the nearest known one from above."""
    return f"b{next((known for known in CLASSES if bits <= known), 16)}"


def format_bits(name: str) -> int:
    """Code bits of a format, or the bits of a float."""
    from ..allocator import FORMATS

    return FORMATS[name].bits


def place(unit: str) -> tuple[str, int, str, int | None] | None:
    """(stack, layer, role, expert) of a unit's name; None when it belongs to no layer."""
    steps = unit.split(".")
    layer = next((index for index, step in enumerate(steps) if step.isdigit()), None)
    if layer is None:
        return None
    role, expert = steps[layer + 1 :], None
    if "experts" in role[:-1] and role[role.index("experts") + 1].isdigit():
        at = role.index("experts") + 1
        expert = int(role.pop(at))
    return ".".join(steps[:layer]), int(steps[layer]), ".".join(role) or "weight", expert


def bit_map(plan: Plan) -> BitMap:
    """The map of a plan: stacks, roles and units in the order in which the plan names them, layers and experts counted up."""
    found: dict[str, dict[tuple[int, str], list[Cell]]] = {}
    outside: list[Cell] = []
    for unit, format_name in plan.assignment.items():
        where = place(unit)
        if where is None:
            outside.append(Cell(unit, format_name, format_bits(format_name)))
            continue
        stack, layer, role, expert = where
        cell = Cell(unit, format_name, format_bits(format_name), expert)
        found.setdefault(stack, {}).setdefault((layer, role), []).append(cell)
    stacks = tuple(_stack(name, cells) for name, cells in found.items())
    return BitMap(stacks, tuple(outside))


def _stack(name: str, cells: dict[tuple[int, str], list[Cell]]) -> Stack:
    return Stack(
        name,
        tuple(sorted({layer for layer, _ in cells})),
        tuple(dict.fromkeys(role for _, role in cells)),
        {key: tuple(sorted(group, key=lambda cell: cell.expert or 0)) for key, group in cells.items()},
    )
