"""Lines on two logarithmic axes, drawn as SVG that stands alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 900, 520
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 20, 52
COLOURS = (
    "#0b6e99",
    "#c2410c",
    "#4d7c0f",
    "#7c3aed",
    "#a16207",
    "#be185d",
    "#334155",
    "#0f766e",
    "#92400e",
    "#1d4ed8",
    "#15803d",
    "#9d174d",
)
LABEL_HEIGHT = 15
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.grid{stroke:#ddd}.line{fill:none;stroke-width:2}"
    ".dashed{stroke-dasharray:5 4}.open{fill:#fff;stroke-width:2}"
)


@dataclass(frozen=True)
class Line:
    """Points (x, y) by rising x; those in `open` are lower ends only (a run was stopped there) and drawn as rings."""

    name: str
    points: tuple[tuple[float, float], ...]
    open: frozenset[float] = frozenset()
    dashed: bool = False


def loglog(lines: Sequence[Line], across: str, upwards: str, title: str) -> str:
    """The figure: every line with its name at its right end."""
    xs = [math.log10(x) for line in lines for x, _ in line.points]
    ys = [math.log10(y) for line in lines for _, y in line.points]
    x_low, x_high, y_low, y_high = min(xs) - 0.1, max(xs) + 0.1, min(ys) - 0.15, max(ys) + 0.15

    def place(x: float, y: float) -> tuple[float, float]:
        right = (math.log10(x) - x_low) / (x_high - x_low)
        up = (math.log10(y) - y_low) / (y_high - y_low)
        return LEFT + (WIDTH - LEFT - RIGHT) * right, TOP + (HEIGHT - TOP - BOTTOM) * (1 - up)

    floor, edge = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>']
    for power in range(math.ceil(x_low), math.floor(x_high) + 1):
        x, _ = place(10.0**power, 10**y_low)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{floor}"/>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{10**power:,}</text>')
    for power in range(math.ceil(y_low), math.floor(y_high) + 1):
        _, y = place(10**x_low, 10.0**power)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{edge}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    ends: list[tuple[float, float, str, str]] = []
    for line, colour in zip(lines, COLOURS * len(lines), strict=False):
        spots = [place(x, y) for x, y in line.points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        dashed = " dashed" if line.dashed else ""
        parts.append(f'<path class="line{dashed}" stroke="{colour}" d="M{path}"><title>{escape(line.name)}</title></path>')
        for (x, y), (count, value) in zip(spots, line.points, strict=True):
            look = f'class="open" stroke="{colour}"' if count in line.open else f'fill="{colour}"'
            tip = f"{line.name}: {value:.3g} at {count:,.0f}" + ", stopped" * (count in line.open)
            parts.append(f'<circle {look} cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(tip)}</title></circle>')
        ends.append((spots[-1][1], spots[-1][0], line.name, colour))
    parts += _labels(ends, edge)
    parts.append(f'<text x="{(LEFT + edge) / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(across)}</text>')
    turned = f'transform="translate(16 {(TOP + floor) / 2:.0f}) rotate(-90)" text-anchor="middle"'
    parts.append(f"<text {turned}>{escape(upwards)}</text>")
    words = " ".join(f"{line.name}: {line.points[-1][1]:.3g} at {line.points[-1][0]:,.0f}." for line in lines)
    box = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    head = f"<title>{escape(title)}</title><desc>{escape(words)}</desc><style>{STYLE}</style>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {box}>{head}{"".join(parts)}</svg>\n'


def _labels(ends: list[tuple[float, float, str, str]], edge: float) -> list[str]:
    """Names in a column at the right, pushed apart where they would meet, each tied to the end of its line."""
    parts: list[str] = []
    lowest = TOP - LABEL_HEIGHT / 2
    crowded = 0.0  # how far the column would run out below
    for height in sorted(end[0] for end in ends):
        lowest = max(height, lowest + LABEL_HEIGHT)
    crowded = max(0.0, lowest - (HEIGHT - BOTTOM))
    lowest = TOP - LABEL_HEIGHT / 2
    for y, x, name, colour in sorted(ends):
        lowest = max(y - crowded, lowest + LABEL_HEIGHT)
        parts.append(
            f'<path d="M{x + 6:.1f} {y:.1f}L{edge + 10:.1f} {lowest:.1f}" stroke="{colour}" stroke-width="0.7" fill="none"/>'
        )
        parts.append(f'<text x="{edge + 14}" y="{lowest + 4:.1f}" style="fill:{colour}">{escape(name)}</text>')
    return parts
