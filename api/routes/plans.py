"""Plans: made from a stored profile at once, or by a job."""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from ...allocator import Plan
from ..auth import Principal, PrincipalDep
from ..compare import compare_plans
from ..depends import (
    JOB_RESPONSE,
    NOT_MODIFIED,
    Cursor,
    JobsDep,
    KeyHeader,
    LanesDep,
    Limit,
    MetricsDep,
    PlannerDep,
    SettingsDep,
    StoreDep,
    as_page,
    as_response,
    job_reply,
    problems,
    tagged,
)
from ..jobs.queue import Jobs
from ..planning import check_body
from ..schema import JobView, ListView, PlanBody, PlanSummary, VerifyBody
from ..store.replies import Reply

router = APIRouter(prefix="/plans", tags=["plans"])


@router.post(
    "", operation_id="plans_create", status_code=201, response_model=Plan, responses={200: {"model": Plan}, **JOB_RESPONSE}
)
async def create(
    body: PlanBody,
    store: StoreDep,
    jobs: JobsDep,
    planner: PlannerDep,
    lanes: LanesDep,
    metrics: MetricsDep,
    settings: SettingsDep,
    principal: PrincipalDep,
    key: KeyHeader = None,
) -> Response:
    """201 and the plan when the model was profiled before (200 when the very plan is stored already); else 202 and a job."""

    def answer() -> Reply:
        check_body(body, settings)
        began = time.perf_counter()
        plan = planner.ready(body)
        if plan is None:
            return job_reply(jobs.submit("plan", body.model_dump(), owner=principal.name))
        metrics.solving.observe(time.perf_counter() - began)
        metrics.gaps.observe(plan.gap / plan.predicted.loss if plan.predicted.loss else 0.0)
        stored = store.keep_document(plan)
        headers = {"content-type": "application/json", "location": f"/v1/plans/{plan.id}"}
        if body.verify and stored.evidence is None:
            headers["link"] = f'<{_submit_verify(jobs, plan.id, principal).links["self"]}>; rel="related"'
        return Reply(201 if stored.new else 200, stored.text(), headers)

    asked = partial(store.replies.answer_once, key, "plans", body, answer, principal.name)
    kind = "plan", body.model_dump_json(exclude={"budget"})
    reply = await lanes.run(kind, asked)
    if reply.status == 202:
        lanes.forget(kind)  # to ask for a job is quick; the plan itself may take long
    return as_response(reply)


@router.get("", operation_id="plans_list", response_model=ListView[PlanSummary])
def index(
    request: Request,
    store: StoreDep,
    model: str | None = None,
    target: str | None = None,
    metric: str | None = None,
    budget: Annotated[str | None, Query(description="as it was asked for")] = None,
    verified: Annotated[bool | None, Query(description="kept its promise when measured, or broke it")] = None,
    sort: Annotated[str, Query(examples=["-created_at", "bytes", "-loss"])] = "-created_at",
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Response:
    """Stored plans, newest first, or sorted by created_at, bytes, loss or stored_bits_per_weight; a minus turns it round."""
    found = store.plans(model, target, metric, budget, verified, sort, cursor, limit)
    return as_page(request, found)


@router.get("/{plan_id}", operation_id="plans_get", response_model=Plan, responses=NOT_MODIFIED)
def get(plan_id: str, request: Request, store: StoreDep) -> Response:
    """One plan, by its id or a prefix of it that only this plan has."""
    return tagged(request, store.stored_plan(plan_id).text())


@router.delete("/{plan_id}", operation_id="plans_delete", status_code=204)
def delete(plan_id: str, store: StoreDep) -> None:
    """Forget a plan. The same request makes it again."""
    store.delete_plan(plan_id)


@router.get("/{plan_id}/certificate", operation_id="plans_certificate")
def certificate(plan_id: str, store: StoreDep) -> dict[str, Any]:
    """The whole choice problem as integers, the choice and the multiplier: what a stranger needs to check the plan."""
    plan = store.plan(plan_id)
    return {"plan_id": plan.id, "quantity": plan.predicted.quantity, **plan.certificate.model_dump()}


@router.get("/{plan_id}/diff/{other}", operation_id="plans_diff", responses=problems(409))
def diff(plan_id: str, other: str, store: StoreDep) -> dict[str, Any]:
    """The units in which two plans of one model differ, with bytes and loss."""
    return compare_plans(store.plan(plan_id), store.plan(other))


@router.post("/{plan_id}/verify", operation_id="plans_verify", status_code=202, responses=JOB_RESPONSE)
def verify(plan_id: str, store: StoreDep, jobs: JobsDep, principal: PrincipalDep, key: KeyHeader = None) -> Response:
    """Measure the plan; the report becomes its `evidence`."""
    body = VerifyBody(plan_id=store.stored_plan(plan_id).id)

    def answer() -> Reply:
        return job_reply(_submit_verify(jobs, body.plan_id, principal))

    return as_response(store.replies.answer_once(key, "verify", body, answer, principal.name))


def _submit_verify(jobs: Jobs, plan_id: str, principal: Principal) -> JobView:
    return jobs.submit("verify", VerifyBody(plan_id=plan_id).model_dump(), owner=principal.name)
