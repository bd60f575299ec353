"""The frontier drawn as SVG: loss against size, both logarithmic, the plan on it and the uniform plans beside it.

Points of loss zero (the untouched model) have no place on a logarithmic axis and are left out; the caption says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

from .scatter import Point, drawn_line
from .wording import MIB, number, size

WIDTH, HEIGHT = 1000, 440
LEFT, RIGHT, TOP, BOTTOM = 66, 24, 16, 48
LETTER_WIDTH, LINE_HEIGHT = 6.2, 13
CLASSES = {"uniform": "uniform", "plan": "plan", "measured plan": "plan", "measured rival": "rival"}


class Axes:
    """Where a size and a loss lie on the page, for the ranges that the points span."""

    def __init__(self, sizes: Sequence[float], losses: Sequence[float]) -> None:
        self.x_low, self.x_high = math.log2(min(sizes)) - 0.1, math.log2(max(sizes)) + 0.15
        self.y_low, self.y_high = math.log10(min(losses)) - 0.15, math.log10(max(losses)) + 0.15

    def x(self, count: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log2(count) - self.x_low) / (self.x_high - self.x_low)

    def y(self, loss: float) -> float:
        share = (math.log10(loss) - self.y_low) / (self.y_high - self.y_low)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(max(share, 0.0), 1.0))


def curve(hull: Iterable[tuple[float, float]], points: Iterable[Point], quantity: str) -> str:
    """The figure: `hull` are (bytes, loss) of the frontier's vertices, `points` what to mark."""
    vertices = list(hull)
    line = [(count, loss) for count, loss in vertices if loss > 0]
    marks = [point for point in points if point.loss > 0]
    if not line and not marks:
        return ""
    axes = Axes([count for count, _ in line] + [p.bytes for p in marks], [loss for _, loss in line] + [p.loss for p in marks])
    parts = [*_grid(axes, quantity), *_hull(axes, vertices), *_marks(axes, marks)]
    title = "<title>Loss against size</title>"
    description = f"<desc>{escape(_in_words(line, marks, quantity))}</desc>"
    box = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {box}>{title}{description}{"".join(parts)}</svg>'


def _in_words(line: list[tuple[float, float]], marks: list[Point], quantity: str) -> str:
    ends = (
        f"From {number(line[0][1])} {quantity} at {size(line[0][0])} to {number(line[-1][1])} at {size(line[-1][0])}. "
        if line
        else ""
    )
    return ends + " ".join(f"{mark.name}: {number(mark.loss)} at {size(mark.bytes)}." for mark in marks)


def _grid(axes: Axes, quantity: str) -> list[str]:
    parts = []
    floor = HEIGHT - BOTTOM
    for tick in _round_sizes(2**axes.x_low / MIB, 2**axes.x_high / MIB):
        x = axes.x(tick * MIB)
        parts.append(f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{floor}"/>')
        parts.append(f'<text class="axis" x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{tick:g}</text>')
    for exponent in range(math.ceil(axes.y_low), math.floor(axes.y_high) + 1):
        for factor in (1, 3):
            value = factor * 10.0**exponent
            if axes.y_low <= math.log10(value) <= axes.y_high:
                y = axes.y(value)
                parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
                parts.append(f'<text class="axis" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    centre, middle = (LEFT + WIDTH - RIGHT) / 2, (TOP + floor) / 2
    across = f'x="{centre:.0f}" y="{HEIGHT - 8}" text-anchor="middle"'
    upwards = f'transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle"'
    parts.append(f'<text class="axis" {across}>size of all weights, MiB</text>')
    parts.append(f'<text class="axis" {upwards}>loss, {escape(quantity)}</text>')
    return parts


def _hull(axes: Axes, vertices: list[tuple[float, float]]) -> list[str]:
    """The frontier. Between vertices it is straight in bytes and loss, and so bent on these axes."""
    shown = [(axes.x(count), axes.y(loss)) for count, loss in drawn_line(vertices) if loss > 10**axes.y_low]
    path = "L".join(dict.fromkeys(f"{x:.1f} {y:.1f}" for x, y in shown))
    return [f'<path class="hull" d="M{path}"><title>the frontier: no plan lies below it</title></path>'] if shown else []


def _marks(axes: Axes, marks: list[Point]) -> list[str]:
    """Marks with their names where these fit; every mark names itself on hover as well. What is measured has error bars."""
    parts: list[str] = []
    labels: list[tuple[float, float, float]] = []  # left, right, middle of each label set so far
    order = {"measured plan": 0, "plan": 1, "measured rival": 2, "uniform": 3}
    shapes: list[str] = []
    for mark in sorted(marks, key=lambda mark: order[mark.kind]):
        x, y, style = axes.x(mark.bytes), axes.y(mark.loss), CLASSES[mark.kind]
        error = "" if mark.stderr is None else f" ± {number(mark.stderr)}"
        title = f"<title>{escape(mark.name)}: {number(mark.loss)}{error} at {size(mark.bytes)}</title>"
        shapes.append(f"<g>{title}{_error_bar(axes, mark, x, style)}{_shape(mark, x, y, style)}</g>")
        width = LETTER_WIDTH * len(mark.name)
        left = x + 11 if x + 11 + width < WIDTH else x - 11 - width
        if all(left > right or left + width < start or abs(y - middle) > LINE_HEIGHT for start, right, middle in labels):
            labels.append((left, left + width, y))
            strong = " class='label strong'" if style == "plan" else " class='label'"
            parts.append(f'<text{strong} x="{left:.1f}" y="{y + 4:.1f}">{escape(mark.name)}</text>')
    return [*parts, *reversed(shapes)]


def _shape(mark: Point, x: float, y: float, style: str) -> str:
    """Predictions are round, measurements have corners."""
    if mark.kind == "measured plan":
        return f'<path class="{style}" d="M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8 -8z"/>'
    if mark.kind == "measured rival":
        return f'<rect class="{style}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>'
    return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{6 if mark.kind == "plan" else 4.5}"/>'


def _error_bar(axes: Axes, mark: Point, x: float, style: str) -> str:
    if mark.stderr is None or not mark.kind.startswith("measured"):
        return ""
    high, low = axes.y(mark.loss + 2 * mark.stderr), axes.y(max(mark.loss - 2 * mark.stderr, 10**axes.y_low))
    return f'<line class="{style}-line" x1="{x:.1f}" y1="{high:.1f}" x2="{x:.1f}" y2="{low:.1f}"/>'


def _round_sizes(low: float, high: float) -> list[float]:
    """Round numbers between two numbers, evenly spread on a logarithmic axis: doublings, with halves between when few fit."""
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    doublings = [2.0**k for k in range(first, last + 1)]
    between = [1.5 * value for value in doublings] if last - first <= 4 else []
    return [value for value in sorted(doublings + between) if low <= value <= high]
