"""The frontier of a profile, every budget of it under a slider: the plan that a budget gets is solved while one drags."""

from __future__ import annotations

from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse

from ...allocator import TARGETS, Plan
from ..cells import unit_facts
from ..curve import curve
from ..depends import Cursor, PlannerDep, StoreDep
from ..layout import bit_map
from ..report import format_rows
from ..scatter import frontier_points, uniform_points
from ..wording import price_per_mib
from .asking import Ask
from .charts import frontier_chart
from .forms import Form
from .page import page, see_other, with_query
from .stored import alike, stored_points

if TYPE_CHECKING:
    from ...allocator import SensitivityReport
    from ..planning import Planner

router = APIRouter(prefix="/profiles")
STEPS = 400  # of the slider
COARSE = 1 << 12  # bytes: its steps are whole multiples of so many


@router.get("")
def index(request: Request, store: StoreDep, model: str = "", cursor: Cursor = None) -> HTMLResponse:
    """Stored profiles: every one is a frontier."""
    found = store.profiles(model or None, cursor or None, 50)
    older = found.next_cursor and with_query("/profiles", {"model": model}, cursor=found.next_cursor)
    return page(request, "profiles.html", section="Frontiers", profiles=found.items, model=model, older=older)


@router.get("/{profile_id}")
def show(
    profile_id: str, request: Request, store: StoreDep, planner: PlannerDep, target: str = "native", budget: str = ""
) -> HTMLResponse:
    """The frontier for a target, and the plan that a budget gets on it."""
    report, body = store.profile(profile_id)
    whole = planner.unlimited(report.id, target)
    low, high = whole.budget.minimum_bytes, whole.budget.maximum_bytes
    plan = _plan(planner, report.id, budget or str(round(sqrt(low * high))), target)
    plans = alike(body.model, target, report.metric, store)
    points = [*stored_points(plans, store), *uniform_points(whole)]
    hull = frontier_points(whole)
    return page(
        request,
        "profile.html",
        section="Frontiers",
        profile=report,
        body=body,
        targets=list(TARGETS),
        target=target,
        plans=plans,
        vertices=whole.frontier(),
        slider=_slider(low, high),
        curve=curve(hull, points, report.quantity),
        chart=frontier_chart(hull, points, report.quantity, (plan.predicted.bytes.total, plan.predicted.loss)),
        **_preview(plan, report),
    )


@router.get("/{profile_id}/preview")
def preview(
    profile_id: str, request: Request, store: StoreDep, planner: PlannerDep, budget: str, target: str = "native"
) -> HTMLResponse:
    """The part of the page that the slider changes."""
    report, _ = store.profile(profile_id)
    plan = _plan(planner, report.id, budget, target)
    return page(request, "preview.html", profile=report, target=target, **_preview(plan, report))


@router.post("/{profile_id}/plans")
async def keep(profile_id: str, form: Form, store: StoreDep, ask: Ask) -> RedirectResponse:
    """Store the plan of this budget, by the request that anybody would make for it."""
    _, body = await run_in_threadpool(store.profile, profile_id)
    asked = {"budget": form.get("budget", ""), "target": form.get("target", "native")}
    return see_other(await ask("/v1/plans", {**body.model_dump(mode="json"), **asked}))


def _plan(planner: Planner, profile_id: str, budget: str, target: str) -> Plan:
    return Plan.from_json(planner.preview(profile_id, budget, target, "best").text)


def _preview(plan: Plan, report: SensitivityReport) -> dict[str, Any]:
    return {
        "plan": plan,
        "map": bit_map(plan),
        "facts": unit_facts(plan, report),
        "formats": format_rows(plan),
        "price": price_per_mib(plan),
    }


def _slider(low: int, high: int) -> dict[str, int]:
    """From the smallest budget that can be met to the untouched model, in steps that are round numbers of bytes."""
    step = max(1, ceil((high - low) / STEPS / COARSE)) * COARSE
    return {"min": ceil(low / step) * step, "max": max(ceil(high / step), ceil(low / step) + 1) * step, "step": step}
