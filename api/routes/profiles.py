"""Profiles: measured once, reused for every budget, target and solver."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response

from ... import allocator
from ..depends import JOB_RESPONSE, Cursor, KeyHeader, Limit, SettingsDep, StoreDep, as_response, job_reply, link_next
from ..planning import check_body, unlimited_plan
from ..schema import ListView, ProfileBody, ProfileSummary
from ..store.replies import Reply, answer_once

router = APIRouter(prefix="/profiles", tags=["profiles"])


@router.post("", operation_id="profiles_create", responses=JOB_RESPONSE)
def create(body: ProfileBody, store: StoreDep, settings: SettingsDep, key: KeyHeader = None) -> Response:
    """200 and the profile when it was measured before; else 202 and a job."""

    def answer() -> Reply:
        check_body(body)
        inventory = allocator.known_inventory(body.model, settings.home)
        report = None if inventory is None else allocator.known_profile(body.profile_request(), settings.home)
        if inventory is None or report is None:
            return job_reply(store.jobs.submit("profile", body.model_dump()))
        store.put_inventory(inventory)
        store.put_profile(report, body)
        return Reply(200, _dump(report, body), {"content-type": "application/json", "location": f"/v1/profiles/{report.id}"})

    return as_response(answer_once(store.database, key, "profiles", body, answer))


@router.get("", operation_id="profiles_list")
def index(
    request: Request, response: Response, store: StoreDep, model: str | None = None, cursor: Cursor = None, limit: Limit = 50
) -> ListView[ProfileSummary]:
    """Stored profiles, newest first."""
    found = store.profiles(model, cursor, limit)
    link_next(request, response, found.next_cursor)
    return found


@router.get("/{profile_id}", operation_id="profiles_get")
def get(profile_id: str, store: StoreDep) -> Response:
    """One profile: the loss of every unit in every format, null where a format does not fit."""
    return Response(_dump(*store.profile(profile_id)), media_type="application/json")


@router.get("/{profile_id}/frontier", operation_id="profiles_frontier")
def frontier(profile_id: str, store: StoreDep, target: str = "native") -> dict[str, Any]:
    """The best loss for every number of bytes."""
    report, body = store.profile(profile_id)
    points = unlimited_plan(report.id, target, store).frontier()
    return {"profile_id": report.id, "model": body.model, "target": target, "quantity": report.quantity, "points": points}


def _dump(report: allocator.SensitivityReport, body: ProfileBody) -> str:
    return json.dumps({"model": body.model, **report.to_json()})
