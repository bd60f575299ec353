"""Jobs: one view of everything that takes longer than a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from ..depends import Cursor, Limit, StoreDep, link_next
from ..problems import MEDIA_TYPE, other_problem
from ..schema import JobStatus, JobView, ListView

router = APIRouter(prefix="/jobs", tags=["jobs"])
POLL_SECONDS = 0.25


def _job(job_id: str, store: StoreDep) -> JobView:
    return store.jobs.get(job_id)


JobDep = Annotated[JobView, Depends(_job)]


@router.get("", operation_id="jobs_list")
def index(
    request: Request,
    response: Response,
    store: StoreDep,
    status: JobStatus | None = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> ListView[JobView]:
    """Jobs, newest first."""
    found = store.jobs.list(status, cursor, limit)
    link_next(request, response, found.next_cursor)
    return found


@router.get("/{job_id}", operation_id="jobs_get")
def get(job: JobDep, response: Response) -> JobView:
    """One job. Always 200: a job that failed is a success of this request, and `error` says why it failed."""
    if not job.finished:
        response.headers["Retry-After"] = "1"
    return job


@router.get("/{job_id}/events", operation_id="jobs_events", response_class=EventSourceResponse)
async def events(
    job: JobDep, store: StoreDep, last_event_id: Annotated[int, Header(alias="Last-Event-ID")] = 0
) -> AsyncIterator[ServerSentEvent]:
    """The job as it changes: `state` and `progress` events, then `result` or `error`, then the end of the stream.

    Every event carries the whole job; its id is the job's version, so that `Last-Event-ID` goes on where a lost
    connection ended. Only the newest state is kept: what changed twice in between is sent once.
    """
    told, status = last_event_id, None
    while True:
        if job.version > told:
            if job.finished:
                yield ServerSentEvent(data=job, event="result" if job.status == "succeeded" else "error", id=str(job.version))
            else:
                yield ServerSentEvent(data=job, event="progress" if job.status == status else "state", id=str(job.version))
            told, status = job.version, job.status
        if job.finished:
            return
        await asyncio.sleep(POLL_SECONDS)
        job = await run_in_threadpool(store.jobs.get, job.id)


@router.post("/{job_id}/cancel", operation_id="jobs_cancel", status_code=202, response_model=JobView)
def cancel(job_id: str, store: StoreDep) -> Response:
    """Ask a job to stop; it does at its next report of progress. 409 when it has already ended in another way."""
    job = store.jobs.cancel(job_id)
    if job.status in ("succeeded", "failed"):
        problem = other_problem("job-not-cancelable", f"job {job.id} has already {job.status}; there is nothing to cancel")
        return JSONResponse(problem, 409, media_type=MEDIA_TYPE)
    return Response(job.model_dump_json(), 202, media_type="application/json")
