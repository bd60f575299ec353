"""Sweeps: models x budgets x targets x metrics, as one job with many plans."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from ..auth import PrincipalDep
from ..depends import Cursor, JobsDep, KeyHeader, Limit, SettingsDep, StoreDep, as_page, as_reply, as_response
from ..planning import check_body
from ..schema import ListView, SweepBody, SweepView
from ..store.replies import Reply

router = APIRouter(prefix="/sweeps", tags=["sweeps"])
SWEEP_RESPONSE: dict[int | str, dict[str, Any]] = {
    202: {
        "model": SweepView,
        "description": "The sweep is a job; follow `Location` until it has ended",
        "headers": {"Location": {"schema": {"type": "string"}}, "Retry-After": {"schema": {"type": "integer"}}},
    }
}
Fresh = Annotated[bool, Query(description="begin anew though the same sweep has ended well")]


@router.post("", operation_id="sweeps_create", status_code=202, response_model=SweepView, responses=SWEEP_RESPONSE)
def create(
    body: SweepBody,
    store: StoreDep,
    jobs: JobsDep,
    settings: SettingsDep,
    principal: PrincipalDep,
    fresh: Fresh = False,
    key: KeyHeader = None,
) -> Response:
    """The sweep of this request: the one that is under way or has ended well, else a new one. Its cells fill as it goes."""

    def answer() -> Reply:
        for cell in body.plan_bodies():
            check_body(cell, settings)
        sweep = None if fresh else store.sweeps.find(body)
        if sweep is None:
            job = jobs.submit("sweep", body.model_dump(mode="json"), owner=principal.name)
            sweep = store.sweeps.create(body, job.id, principal.name)
        return as_reply(sweep, 202, location=sweep.links["self"], retry_after="1")

    route = "sweeps, fresh" if fresh else "sweeps"
    return as_response(store.replies.answer_once(key, route, body, answer, principal.name))


@router.get("", operation_id="sweeps_list", response_model=ListView[SweepView])
def index(request: Request, store: StoreDep, cursor: Cursor = None, limit: Limit = 50) -> Response:
    """Sweeps with their cells, newest first."""
    found = store.sweeps.list(cursor, limit)
    return as_page(request, found)


@router.get("/{sweep_id}", operation_id="sweeps_get")
def get(sweep_id: str, store: StoreDep, response: Response) -> SweepView:
    """One sweep with every cell: its plan, or why it has none."""
    sweep = store.sweeps.get(sweep_id)
    if not sweep.finished:
        response.headers["Retry-After"] = "1"
    return sweep
