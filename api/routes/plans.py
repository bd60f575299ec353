"""Plans: made from a stored profile at once, or by a job."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response

from ...allocator import Plan
from ..compare import compare_plans
from ..depends import (
    JOB_RESPONSE,
    Cursor,
    KeyHeader,
    Limit,
    SettingsDep,
    StoreDep,
    as_reply,
    as_response,
    job_reply,
    link_next,
    tagged,
)
from ..planning import check_body, ready_plan
from ..schema import JobView, ListView, PlanBody, PlanSummary, VerifyBody
from ..store import Store
from ..store.replies import Reply, answer_once

router = APIRouter(prefix="/plans", tags=["plans"])


@router.post(
    "", operation_id="plans_create", status_code=201, response_model=Plan, responses={200: {"model": Plan}, **JOB_RESPONSE}
)
def create(body: PlanBody, store: StoreDep, settings: SettingsDep, key: KeyHeader = None) -> Response:
    """201 and the plan when the model was profiled before (200 when the very plan is stored already); else 202 and a job."""

    def answer() -> Reply:
        check_body(body)
        plan = ready_plan(body, store, settings)
        if plan is None:
            return job_reply(store.jobs.submit("plan", body.model_dump()))
        status = 201 if store.put_plan(plan) else 200
        plan = store.plan(plan.id)
        headers = {"location": f"/v1/plans/{plan.id}"}
        if body.verify and plan.evidence is None:
            headers["link"] = f'<{_submit_verify(store, plan.id).links["self"]}>; rel="related"'
        return as_reply(plan, status, **headers)

    return as_response(answer_once(store.database, key, "plans", body, answer))


@router.get("", operation_id="plans_list")
def index(
    request: Request,
    response: Response,
    store: StoreDep,
    model: str | None = None,
    target: str | None = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> ListView[PlanSummary]:
    """Stored plans, newest first."""
    found = store.plans(model, target, cursor, limit)
    link_next(request, response, found.next_cursor)
    return found


@router.get("/{plan_id}", operation_id="plans_get", response_model=Plan)
def get(plan_id: str, request: Request, store: StoreDep) -> Response:
    """One plan, by its id or a prefix of it that only this plan has."""
    return tagged(request, store.plan(plan_id))


@router.delete("/{plan_id}", operation_id="plans_delete", status_code=204)
def delete(plan_id: str, store: StoreDep) -> None:
    """Forget a plan. The same request makes it again."""
    store.delete_plan(plan_id)


@router.get("/{plan_id}/certificate", operation_id="plans_certificate")
def certificate(plan_id: str, store: StoreDep) -> dict[str, Any]:
    """The whole choice problem as integers, the choice and the multiplier: what a stranger needs to check the plan."""
    plan = store.plan(plan_id)
    return {"plan_id": plan.id, "quantity": plan.predicted.quantity, **plan.certificate.model_dump()}


@router.get("/{plan_id}/diff/{other}", operation_id="plans_diff")
def diff(plan_id: str, other: str, store: StoreDep) -> dict[str, Any]:
    """The units in which two plans of one model differ, with bytes and loss."""
    return compare_plans(store.plan(plan_id), store.plan(other))


@router.post("/{plan_id}/verify", operation_id="plans_verify", status_code=202, responses=JOB_RESPONSE)
def verify(plan_id: str, store: StoreDep, key: KeyHeader = None) -> Response:
    """Measure the plan; the report becomes its `evidence`."""
    body = VerifyBody(plan_id=store.plan(plan_id).id)
    return as_response(answer_once(store.database, key, "verify", body, lambda: job_reply(_submit_verify(store, body.plan_id))))


@router.post("/{plan_id}/exports", operation_id="plans_export", include_in_schema=False)
def export(plan_id: str, store: StoreDep) -> None:
    raise HTTPException(
        501, f"exports are not available in this version; `bitplan execute {store.plan(plan_id).id[:12]}` writes a folder"
    )


def _submit_verify(store: Store, plan_id: str) -> JobView:
    return store.jobs.submit("verify", VerifyBody(plan_id=plan_id).model_dump())
