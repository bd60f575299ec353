"""The report: one HTML file about one plan, readable without network or scripts.

It shows what was promised beside what was measured, and the plan beside the uniform plans of its size. The plan's page in
the dashboard is made of the same parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import wording
from .cells import unit_facts
from .curve import curve
from .layout import bit_map
from .scatter import frontier_points, measured_points, plan_point, uniform_points
from .templates import render

if TYPE_CHECKING:
    from ..allocator import Plan, SensitivityReport


def report_html(plan: Plan, report: dict[str, Any] | None) -> str:
    """The whole file. `report` is an ExecutionReport as JSON; without it the measured half says what is missing."""
    return render("report.html", **plan_context(plan, report))


def plan_context(plan: Plan, report: dict[str, Any] | None, profile: SensitivityReport | None = None) -> dict[str, Any]:
    """What the templates need to know of a plan; its profile, where it is at hand, gives each unit its error bar."""
    points = [*uniform_points(plan), plan_point(plan), *measured_points(report)]
    return {
        "plan": plan,
        "report": report,
        "map": bit_map(plan),
        "facts": unit_facts(plan, profile),
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
