"""The plots as Vega-Lite documents: plain values, drawn by the browser from the page's own data.

Colours are names of the style sheet's variables (`var(--ink)`), which the page's script resolves, so that a plot follows
the colour scheme. Predictions are round and measurements have corners, as in the report's figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ..scatter import Point, drawn_line
from ..schema import SweepView
from ..wording import MIB, loss, number, size

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # a name, never fetched
KINDS = {
    "uniform": {"shape": "circle", "size": 55, "fill": "var(--panel)", "stroke": "var(--soft)", "strokeWidth": 1.5},
    "plan": {"shape": "circle", "size": 85, "fill": "var(--accent)", "stroke": "var(--panel)", "strokeWidth": 1},
    "measured plan": {"shape": "diamond", "size": 150, "fill": "var(--accent)", "stroke": "var(--panel)", "strokeWidth": 1},
    "measured rival": {"shape": "square", "size": 85, "fill": "var(--ink)", "stroke": "var(--panel)", "strokeWidth": 1},
}


def frontier_chart(
    hull: Sequence[tuple[float, float]], points: Iterable[Point], quantity: str, here: tuple[int, float] | None = None
) -> dict[str, Any]:
    """Loss against size, both logarithmic: the frontier, what lies on and above it, and `here`, where the slider stands.

    The data set `here` may be replaced while the plot is shown. A loss of zero has no place on this axis: no mark is drawn
    for it, and `here` stands at the lower edge (`usermeta.lowest`).
    """
    marks = [point for point in points if point.loss > 0]
    line = _line(hull, marks)
    of_kind = {kind: [point for point in marks if point.kind == kind] for kind in {point.kind for point in marks}}
    lowest = min([loss for _, loss in line] + [point.loss for point in marks], default=1.0)
    return {
        "$schema": SCHEMA,
        "description": f"Loss in {quantity} against the size of all weights; the line is the frontier of all plans.",
        "width": "container",
        "height": 380,
        "usermeta": {"lowest": lowest},
        "layer": [
            {
                "data": {"values": [{"mib": x, "loss": y} for x, y in line]},
                "mark": {"type": "line", "color": "var(--soft)", "strokeWidth": 1.5},
                "encoding": _place(quantity, [loss for _, loss in line] + [point.loss for point in marks]),
            },
            *[_error_bars(of_kind[kind], colour) for kind, colour in _MEASURED if kind in of_kind],
            *[_symbols(of_kind[kind], kind) for kind in KINDS if kind in of_kind],
            *[_names(of_kind[kind]) for kind in ("uniform",) if kind in of_kind],
            *[_ring(count, loss or lowest) for count, loss in ([] if here is None else [here])],
        ],
    }


def sweep_charts(sweep: SweepView) -> dict[str, dict[str, Any]]:
    """Quantity -> loss against size of the plans whose loss is in it, a line for each model, metric and target."""
    values: dict[str, list[dict[str, Any]]] = {}
    for cell in sweep.cells:
        if cell.plan is not None and cell.plan.loss > 0:
            values.setdefault(cell.plan.quantity, []).append(
                {
                    "series": " · ".join((cell.model, cell.metric, cell.target)),
                    "budget": cell.budget,
                    "mib": cell.plan.bytes / MIB,
                    "loss": cell.plan.loss,
                    "size": size(cell.plan.bytes),
                    "said": loss(cell.plan.loss, cell.plan.stderr),
                    "href": f"/plans/{cell.plan.id}",
                }
            )
    return {quantity: _sweep_chart(quantity, points) for quantity, points in values.items()}


def _sweep_chart(quantity: str, values: list[dict[str, Any]]) -> dict[str, Any]:
    legend = {"orient": "top", "columns": 2, "labelLimit": 340, "symbolOpacity": 1}
    series = {"field": "series", "type": "nominal", "title": None, "legend": legend}
    said = ({"field": "series", "title": "plan"}, {"field": "budget"}, {"field": "size"}, {"field": "said", "title": "loss"})
    return {
        "$schema": SCHEMA,
        "description": f"Loss in {quantity} against size of the plans of a sweep, a line for each model, metric and target.",
        "width": "container",
        "height": 300,
        "data": {"values": values},
        "encoding": _place(quantity, [value["loss"] for value in values]) | {"color": {**series, "scale": {"range": _SERIES}}},
        "layer": [
            {"mark": {"type": "line", "strokeWidth": 1.5}},
            {
                "mark": {"type": "point", "filled": True, "opacity": 1, "size": 80, "cursor": "pointer"},
                "encoding": {"shape": series, "href": {"field": "href"}, "tooltip": list(said)},
            },
        ],
    }


_MEASURED = (("measured plan", "var(--accent)"), ("measured rival", "var(--ink)"))
_SERIES = ["var(--accent)", "var(--b6)", "var(--b8)", "var(--b4)", "var(--soft)", "var(--b3)"]


def _ticks(losses: list[float]) -> list[float]:
    """Round numbers over the range of losses: powers of ten, with numbers between where these are few."""
    if not losses:
        return []
    low, high = math.floor(math.log10(min(losses))), math.ceil(math.log10(max(losses)))
    factors = (1,) if high - low > 4 else (1, 3) if high - low > 2 else (1, 2, 5)
    return [float(f"{factor}e{power}") for power in range(low - 1, high + 1) for factor in factors]


def _place(quantity: str, losses: list[float]) -> dict[str, Any]:
    return {
        "x": {
            "field": "mib",
            "type": "quantitative",
            "title": "size of all weights, MiB",
            "scale": {"type": "log", "base": 2, "nice": False, "padding": 12},
            "axis": {"tickCount": 8, "format": "~g"},
        },
        "y": {
            "field": "loss",
            "type": "quantitative",
            "title": f"loss, {quantity}",
            "scale": {"type": "log", "nice": False, "padding": 12},
            "axis": {"values": _ticks(losses), "format": "~g"},
        },
    }


def _line(hull: Sequence[tuple[float, float]], marks: list[Point]) -> list[tuple[float, float]]:
    """In MiB. Towards the untouched model the loss falls without end on this axis, so the line ends a little below the
    lowest mark; the data set `here` may still go further."""
    least = min((point.loss for point in marks), default=min((loss for _, loss in hull if loss > 0), default=0.0)) / 5
    return [(float(f"{count / MIB:.7g}"), float(f"{value:.7g}")) for count, value in drawn_line(hull) if value > least]


def _symbols(points: list[Point], kind: str) -> dict[str, Any]:
    values = [
        {
            "mib": point.bytes / MIB,
            "loss": point.loss,
            "name": point.name,
            "said": loss(point.loss, point.stderr),
            "size": size(point.bytes),
            "href": point.href,
        }
        for point in points
    ]
    encoding: dict[str, Any] = {
        "x": {"field": "mib", "type": "quantitative"},
        "y": {"field": "loss", "type": "quantitative"},
        "tooltip": [{"field": "name", "title": kind}, {"field": "said", "title": "loss"}, {"field": "size", "title": "size"}],
        "description": {"field": "name", "type": "nominal"},
    }
    mark: dict[str, Any] = {"type": "point", "filled": True, "opacity": 1, **KINDS[kind]}
    if any(point.href for point in points):
        encoding["href"] = {"field": "href"}
        mark["cursor"] = "pointer"
    return {"data": {"values": values}, "mark": mark, "encoding": encoding}


def _ring(count: int, loss: float) -> dict[str, Any]:
    mark = {"type": "point", "shape": "circle", "size": 260, "filled": False, "stroke": "var(--accent)", "strokeWidth": 2.5}
    encoding = {"x": {"field": "mib", "type": "quantitative"}, "y": {"field": "loss", "type": "quantitative"}}
    return {"data": {"name": "here", "values": [{"mib": count / MIB, "loss": loss}]}, "mark": mark, "encoding": encoding}


def _names(points: list[Point]) -> dict[str, Any]:
    """Each uniform plan's format, to the right of its circle, which lies above the frontier."""
    values = [{"mib": point.bytes / MIB, "loss": point.loss, "name": point.name} for point in points]
    return {
        "data": {"values": values},
        "mark": {"type": "text", "align": "left", "dx": 8, "dy": -5, "color": "var(--soft)", "fontSize": 11},
        "encoding": {
            "x": {"field": "mib", "type": "quantitative"},
            "y": {"field": "loss", "type": "quantitative"},
            "text": {"field": "name"},
        },
    }


def _error_bars(points: list[Point], colour: str) -> dict[str, Any]:
    """Two standard errors up and down, of what was measured."""
    values = [
        {
            "mib": point.bytes / MIB,
            "low": max(point.loss - 2 * point.stderr, point.loss / 10),
            "high": point.loss + 2 * point.stderr,
            "said": number(point.loss),
        }
        for point in points
        if point.stderr is not None
    ]
    return {
        "data": {"values": values},
        "mark": {"type": "rule", "color": colour, "strokeWidth": 1.5},
        "encoding": {
            "x": {"field": "mib", "type": "quantitative"},
            "y": {"field": "low", "type": "quantitative"},
            "y2": {"field": "high"},
        },
    }
