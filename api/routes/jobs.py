"""Jobs: one view of everything that takes longer than a request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from ..auth import PrincipalDep
from ..depends import Cursor, JobsDep, Limit, as_page, problems
from ..jobs.watching import Glances
from ..problems import MEDIA_TYPE, other_problem
from ..schema import JobKind, JobStatus, JobView, ListView

router = APIRouter(prefix="/jobs", tags=["jobs"])


def _job(job_id: str, jobs: JobsDep) -> JobView:
    return jobs.get(job_id)


def _glances(request: Request, response: Response, jobs: JobsDep) -> Glances:
    """One for the whole application, made by the first who listens."""
    response.headers["Cache-Control"] = "no-store"
    if not hasattr(request.app.state, "glances"):
        request.app.state.glances = Glances(jobs.get)
    found: Glances = request.app.state.glances
    return found


JobDep = Annotated[JobView, Depends(_job)]
GlancesDep = Annotated[Glances, Depends(_glances)]


@router.get("", operation_id="jobs_list", response_model=ListView[JobView])
def index(
    request: Request,
    jobs: JobsDep,
    status: JobStatus | None = None,
    kind: JobKind | None = None,
    owner: str | None = None,
    parent: str | None = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Response:
    """Jobs, newest first."""
    found = jobs.list(status, kind, owner, parent, cursor, limit)
    return as_page(request, found)


@router.get("/{job_id}", operation_id="jobs_get")
def get(job: JobDep, response: Response) -> JobView:
    """One job. Always 200: a job that failed is a success of this request, and `error` says why it failed."""
    if not job.finished:
        response.headers["Retry-After"] = "1"
    return job


@router.get("/{job_id}/events", operation_id="jobs_events", response_class=EventSourceResponse)
async def events(
    job: JobDep, glances: GlancesDep, last_event_id: Annotated[int, Header(alias="Last-Event-ID")] = 0
) -> AsyncIterator[ServerSentEvent]:
    """The job as it changes: `state` and `progress` events, then `result` or `error`, then the end of the stream.

    Every event carries the whole job; its id is the job's version, so that `Last-Event-ID` goes on where a lost
    connection ended. Only the newest state is kept: what changed twice in between is sent once. A comment every 15 s keeps
    the connection open.
    """
    status = None
    async for now in glances.changes(job, last_event_id):
        if now.finished:
            event = "result" if now.status == "succeeded" else "error"
        else:
            event = "progress" if now.status == status else "state"
        yield ServerSentEvent(data=now, event=event, id=str(now.version))
        status = now.status


@router.post("/{job_id}/cancel", operation_id="jobs_cancel", status_code=202, response_model=JobView, responses=problems(409))
def cancel(job_id: str, jobs: JobsDep, principal: PrincipalDep) -> Response:
    """Ask a job to stop; it does at its next report of progress. 409 when it has already ended in another way, 403 when it
    is somebody else's."""
    principal.need_ownership(jobs.get(job_id).owner, "cancel jobs")
    job = jobs.cancel(job_id)
    if job.status in ("succeeded", "failed"):
        problem = other_problem("job-not-cancelable", f"job {job.id} has already {job.status}; there is nothing to cancel")
        return JSONResponse(problem, 409, media_type=MEDIA_TYPE)
    return Response(job.model_dump_json(), 202, media_type="application/json")
