"""Profiles: measured once, reused for every budget, target and solver."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from ... import allocator
from ..auth import PrincipalDep
from ..depends import (
    JOB_RESPONSE,
    Cursor,
    JobsDep,
    KeyHeader,
    LanesDep,
    Limit,
    PlannerDep,
    SettingsDep,
    StoreDep,
    as_page,
    as_response,
    job_reply,
)
from ..planning import check_body
from ..schema import ListView, ProfileBody, ProfileSummary
from ..store.replies import Reply

router = APIRouter(prefix="/profiles", tags=["profiles"])


@router.post("", operation_id="profiles_create", responses=JOB_RESPONSE)
async def create(
    body: ProfileBody,
    store: StoreDep,
    jobs: JobsDep,
    planner: PlannerDep,
    lanes: LanesDep,
    settings: SettingsDep,
    principal: PrincipalDep,
    key: KeyHeader = None,
) -> Response:
    """200 and the profile when it was measured before; else 202 and a job."""

    def answer() -> Reply:
        check_body(body, settings)
        inventory = planner.inventory(body.model)
        report = None if inventory is None else planner.report(body.profile_request(), inventory, body)
        if report is None:
            return job_reply(jobs.submit("profile", body.model_dump(), owner=principal.name))
        return Reply(200, _dump(report, body), {"content-type": "application/json", "location": f"/v1/profiles/{report.id}"})

    asked = partial(store.replies.answer_once, key, "profiles", body, answer, principal.name)
    return as_response(await lanes.run(("profile", body.model_dump_json()), asked))


@router.get("", operation_id="profiles_list", response_model=ListView[ProfileSummary])
def index(request: Request, store: StoreDep, model: str | None = None, cursor: Cursor = None, limit: Limit = 50) -> Response:
    """Stored profiles, newest first."""
    found = store.profiles(model, cursor, limit)
    return as_page(request, found)


@router.get("/{profile_id}", operation_id="profiles_get")
def get(profile_id: str, store: StoreDep) -> Response:
    """One profile: the loss of every unit in every format, null where a format does not fit."""
    return Response(_dump(*store.profile(profile_id)), media_type="application/json")


@router.get("/{profile_id}/frontier", operation_id="profiles_frontier")
async def frontier(profile_id: str, planner: PlannerDep, lanes: LanesDep, target: str = "native") -> dict[str, Any]:
    """The best loss for every number of bytes."""

    def points() -> dict[str, Any]:
        plan = planner.unlimited(profile_id, target)
        about = {"profile_id": plan.provenance.profile_id, "model": plan.model.id, "target": target}
        return {**about, "quantity": plan.predicted.quantity, "points": plan.frontier()}

    return await lanes.run(("frontier", profile_id, target), points)


@router.get("/{profile_id}/plan", operation_id="profiles_plan", response_model=allocator.Plan)
async def preview(
    profile_id: str,
    planner: PlannerDep,
    lanes: LanesDep,
    budget: Annotated[str, Query(min_length=1, examples=["60MiB", "3.25bpw", "40%"])],
    target: str = "native",
    solver: str = "best",
) -> Response:
    """The plan that a POST of the profile's settings with this budget returns, under the same id; it is not stored."""
    asked = partial(planner.preview, profile_id, budget, target, solver)
    plan = await lanes.run(("preview", profile_id, target, solver), asked)
    return Response(plan.text, media_type="application/json")


def _dump(report: allocator.SensitivityReport, body: ProfileBody) -> str:
    return json.dumps({"model": body.model, **report.to_json()})
