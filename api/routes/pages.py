"""The dashboard: pages over what is stored. They only read."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from ...allocator import Plan
from ..curve import curve
from ..depends import Cursor, StoreDep
from ..guard import HEADERS
from ..report import plan_context, render, style_hash
from ..scatter import Point, frontier_points, measured_points, uniform_points
from ..schema import PlanSummary

router = APIRouter(include_in_schema=False)


@router.get("/", response_class=HTMLResponse)
def home(store: StoreDep, model: str | None = None, cursor: Cursor = None) -> HTMLResponse:
    """Stored plans, the frontier of the newest one's model, and jobs."""
    plans = store.plans(model, cursor=cursor)
    shown = store.plan(plans.items[0].id) if plans.items else None
    return _page(
        "home.html",
        plans=plans.items,
        next_cursor=plans.next_cursor,
        model=model,
        shown=shown,
        curve="" if shown is None else _frontier(shown, plans.items),
        jobs=store.jobs.list(limit=8).items,
        worker=store.worker_alive(),
    )


@router.get("/plans/{plan_id}", response_class=HTMLResponse)
def plan(plan_id: str, store: StoreDep) -> HTMLResponse:
    """One plan, as in its report."""
    found = store.plan(plan_id)
    return _page("report.html", **plan_context(found, found.evidence))


def _frontier(shown: Plan, plans: list[PlanSummary]) -> str:
    alike = [
        plan
        for plan in plans
        if (plan.model, plan.target, plan.metric) == (shown.model.id, shown.target, shown.provenance.metric)
    ]
    stored = [Point("plan", plan.budget, plan.bytes, plan.loss, plan.stderr) for plan in alike]
    return curve(
        frontier_points(shown), [*uniform_points(shown), *stored, *measured_points(shown.evidence)], shown.predicted.quantity
    )


def _page(template: str, **context: object) -> HTMLResponse:
    """A page that may use its own style sheet and nothing else."""
    policy = f"{HEADERS['content-security-policy']}; style-src 'sha256-{style_hash()}'"
    return HTMLResponse(render(template, framed=True, **context), headers={"content-security-policy": policy})
