"""The bit map of a plan, drawn as SVG: every unit a cell, coloured by its bits and with the bits printed in it.

Layers run to the right and roles downwards; a cell with experts is divided into one strip an expert. Cells too small to
print in name their format on hover and to screen readers, and the caption gives the range.
"""

from __future__ import annotations

from collections import Counter
from html import escape

from .layout import BitMap, Cell, Stack

CELL_WIDTH, CELL_HEIGHT = 27, 24
STRIP_HEIGHT, SMALL_STRIP_HEIGHT, MANY_EXPERTS = 13, 5, 32
LETTER_WIDTH = 6.4  # of an 11-pixel label
CLASSES = (1, 2, 3, 4, 5, 6, 7, 8, 16)
DARK_FROM = 6  # cells of so many bits and more carry light text


def bits_class(bits: int) -> str:
    """The style class of a number of bits: the nearest known one from above."""
    return f"b{next((known for known in CLASSES if bits <= known), 16)}"


def legend(cells: list[Cell]) -> str:
    """A strip of the bits in use, each with how many units have it."""
    counts = sorted(Counter(cell.bits for cell in cells).items())
    parts, x = [], 0.0
    for bits, count in counts:
        label = f"{count} unit{'s' if count != 1 else ''}"
        parts.append(_cell(x, 0, CELL_WIDTH, 20, bits, str(bits), f"{bits} bits: {label}"))
        parts.append(f'<text class="axis" x="{x + CELL_WIDTH + 6:.0f}" y="14">{label}</text>')
        x += CELL_WIDTH + 6 + LETTER_WIDTH * len(label) + 18
    return _svg(x, 20, "Legend of the bit map", "Bits a code and the number of units that have them", parts)


def stack_figure(stack: Stack) -> str:
    """One stack of layers."""
    margin = 14 + LETTER_WIDTH * max(len(role) for role in stack.roles)
    parts = []
    for column, layer in enumerate(stack.layers):
        parts.append(
            f'<text class="axis" x="{margin + (column + 0.5) * CELL_WIDTH:.1f}" y="11" text-anchor="middle">{layer}</text>'
        )
    y = 18.0
    for role in stack.roles:
        height, strip = _row_height(stack, role)
        parts.append(
            f'<text x="{margin - 8:.1f}" y="{y + min(height, CELL_HEIGHT) / 2 + 4:.1f}" text-anchor="end">{escape(role)}</text>'
        )
        for column, layer in enumerate(stack.layers):
            for index, cell in enumerate(stack.cells.get((layer, role), ())):
                text = str(cell.bits) if strip >= STRIP_HEIGHT else ""
                title = f"{cell.unit}: {cell.format}"
                parts.append(_cell(margin + column * CELL_WIDTH, y + index * strip, CELL_WIDTH, strip, cell.bits, text, title))
        y += height + 2
    width = margin + len(stack.layers) * CELL_WIDTH + 2
    title = f"Bits of {stack.name or 'the layers'}"
    return _svg(width, y, title, f"{len(stack.layers)} layers to the right, {len(stack.roles)} roles downwards", parts)


def outside_figure(cells: tuple[Cell, ...]) -> str:
    """The units that belong to no layer: embeddings, heads."""
    parts, y = [], 0.0
    for cell in cells:
        name = f'{escape(cell.unit)} <tspan class="axis">{escape(cell.format)}</tspan>'
        parts.append(_cell(0, y, 2 * CELL_WIDTH, CELL_HEIGHT, cell.bits, str(cell.bits), f"{cell.unit}: {cell.format}"))
        parts.append(f'<text x="{2 * CELL_WIDTH + 8}" y="{y + 16:.0f}">{name}</text>')
        y += CELL_HEIGHT + 2
    longest = max(len(cell.unit) + len(cell.format) for cell in cells)
    return _svg(
        2 * CELL_WIDTH + 24 + LETTER_WIDTH * longest, y, "Bits outside the layers", "Units that belong to no layer", parts
    )


def map_figures(bit_map: BitMap) -> list[str]:
    """Legend, stacks and what lies outside them, ready to stand below each other."""
    cells = [cell for stack in bit_map.stacks for group in stack.cells.values() for cell in group]
    figures = [legend([*cells, *bit_map.outside])] + [stack_figure(stack) for stack in bit_map.stacks]
    return [*figures, outside_figure(bit_map.outside)] if bit_map.outside else figures


def _row_height(stack: Stack, role: str) -> tuple[float, float]:
    """Height of a role's row and of each strip in it."""
    most = max(len(group) for (_, name), group in stack.cells.items() if name == role)
    if most == 1:
        return CELL_HEIGHT, CELL_HEIGHT
    strip = STRIP_HEIGHT if most <= MANY_EXPERTS else SMALL_STRIP_HEIGHT
    return most * strip, strip


def _cell(x: float, y: float, width: float, height: float, bits: int, text: str, title: str) -> str:
    dark = " dark" if bits >= DARK_FROM else ""
    inset = 1 if height > SMALL_STRIP_HEIGHT else 0.5
    place = f'x="{x + inset:.1f}" y="{y + inset / 2:.1f}" width="{width - 2 * inset:.1f}" height="{height - inset:.1f}" rx="2"'
    box = f'<rect class="{bits_class(bits)}" {place}/>'
    label = f'<text class="on{dark}" x="{x + width / 2:.1f}" y="{y + height / 2 + 3.8:.1f}">{text}</text>' if text else ""
    return f"<g><title>{escape(title)}</title>{box}{label}</g>"


def _svg(width: float, height: float, title: str, description: str, parts: list[str]) -> str:
    """A figure with its name and description for readers who do not see it."""
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    head = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>{head}{"".join(parts)}</svg>'
