"""What lies stored beside a plan: its profile, and the plans of the same model that stand on the same frontier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...allocator.errors import NotFound
from ..scatter import Point, measured_points, plan_point, uniform_points

if TYPE_CHECKING:
    from ...allocator import Plan, SensitivityReport
    from ..schema import PlanSummary
    from ..store import Store

MOST_PLANS = 200
MOST_MEASURED = 20


def profile_of(plan: Plan, store: Store) -> SensitivityReport | None:
    """The profile that the plan rests on; None where nothing was measured or the profile is stored no more."""
    if plan.provenance.profile_id is None:
        return None
    try:
        return store.profile(plan.provenance.profile_id)[0]
    except NotFound:
        return None


def alike(model: str, target: str, metric: str, store: Store) -> list[PlanSummary]:
    """Stored plans of one model for one target by one metric, newest first."""
    return store.plans(model, target, metric, limit=MOST_PLANS).items


def stored_points(plans: list[PlanSummary], store: Store, but: str = "") -> list[Point]:
    """Where these plans stand, as predicted and, for the newest of those that were measured, as measured."""
    points = [
        Point("plan", plan.budget, plan.bytes, plan.loss, plan.stderr, f"/plans/{plan.id}") for plan in plans if plan.id != but
    ]
    for plan in [plan for plan in plans if plan.verified is not None and plan.id != but][:MOST_MEASURED]:
        points += [_named(point, plan) for point in measured_points(store.plan(plan.id).evidence)]
    return points


def alike_points(plan: Plan, store: Store) -> list[Point]:
    """A plan among its uniform rivals and the stored plans of its kind."""
    others = stored_points(alike(plan.model.id, plan.target, plan.provenance.metric, store), store, but=plan.id)
    return [*others, *uniform_points(plan), plan_point(plan), *measured_points(plan.evidence)]


def _named(point: Point, plan: PlanSummary) -> Point:
    name = f"{plan.budget}, measured" if point.kind == "measured plan" else point.name
    return Point(point.kind, name, point.bytes, point.loss, point.stderr, f"/plans/{plan.id}")
