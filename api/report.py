"""The report: one HTML file about one plan, readable without network or scripts.

It shows what was promised beside what was measured, and the plan beside the uniform plans of its size. The same
template, in the frame of the dashboard, is the plan's page there.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from . import wording
from .curve import curve
from .figures import map_figures
from .layout import bit_map
from .scatter import frontier_points, measured_points, plan_point, uniform_points

if TYPE_CHECKING:
    from ..allocator import Plan


def report_html(plan: Plan, report: dict[str, Any] | None) -> str:
    """The whole file. `report` is an ExecutionReport as JSON; without it the measured half says what is missing."""
    return render("report.html", framed=False, **plan_context(plan, report))


def plan_context(plan: Plan, report: dict[str, Any] | None) -> dict[str, Any]:
    """What the template needs to know of a plan."""
    points = [*uniform_points(plan), plan_point(plan), *measured_points(report)]
    return {
        "plan": plan,
        "report": report,
        "maps": map_figures(bit_map(plan)),
        "curve": curve(frontier_points(plan), points, plan.predicted.quantity),
        "sentences": wording.certificate_sentences(plan),
        "formats": format_rows(plan),
        "losses": loss_rows(plan, report),
    }


def format_rows(plan: Plan) -> list[dict[str, Any]]:
    """The histogram: each format in use with its units and bytes, largest first."""
    units: dict[str, int] = {}
    for format_name in plan.assignment.values():
        units[format_name] = units.get(format_name, 0) + 1
    rows = [
        {"format": name, "units": units.get(name, 0), "bytes": count}
        for name, count in plan.predicted.bytes.by_format.items()
        if count
    ]
    return sorted(rows, key=lambda row: -int(row["bytes"]))


def loss_rows(plan: Plan, report: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Promise, fact and rivals in one list; `share` is the length of a bar against the longest."""
    points = [plan_point(plan), *measured_points(report)]
    longest = max(point.loss for point in points) or 1.0
    return [
        {
            "name": f"{point.name}, measured" if point.kind == "measured rival" else point.name,
            "loss": point.loss,
            "stderr": point.stderr,
            "bytes": point.bytes,
            "mine": point.kind != "measured rival",
            "share": point.loss / longest,
        }
        for point in points
    ]


def render(template: str, **context: Any) -> str:
    return _environment().get_template(template).render(**context)


def style_hash() -> str:
    """The style sheet's hash, for a content security policy that admits it and nothing else."""
    return base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()


@cache
def svg_style() -> str:
    """The light half of the style sheet's rules for figures, variables filled in, for a figure in a file of its own."""
    variables = dict(re.findall(r"--([\w-]+): (#\w+)", _style().partition("@media")[0]))
    rules = [rule for line in _style().splitlines() for rule in re.findall(r"(?:svg|\.b\d)[^{}]*{[^{}]*}", line)]
    figures = "\n".join(rule.removeprefix("svg ") for rule in rules if not rule.startswith("svg {"))
    return re.sub(r"var\(--([\w-]+)\)", lambda match: variables[match[1]], figures)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(size=wording.size, number=wording.number, figure=wording.figure)
    environment.globals.update(
        style=_style(), loss=wording.loss, verdict=wording.verdict, products=wording.products, measured=wording.MEASURED
    )
    return environment


@cache
def _source(name: str) -> str:
    return (resources.files(__package__) / "dashboard" / name).read_text(encoding="utf-8")


@cache
def _style() -> str:
    return _source("style.css")
