"""Jobs: what is being worked on, live, and how it ended."""

from __future__ import annotations

from typing import Literal
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from ..depends import Cursor, JobsDep, StoreDep, WatchDep
from ..schema import JobStatus
from .asking import Ask
from .page import page, see_other, with_query

router = APIRouter(prefix="/jobs")


@router.get("")
def index(
    request: Request, store: StoreDep, jobs: JobsDep, watch: WatchDep, status: Literal[""] | JobStatus = "", cursor: Cursor = None
) -> HTMLResponse:
    """Jobs, newest first."""
    workers = store.workers.list()
    found = jobs.list(status=status or None, cursor=cursor or None, limit=50)
    return page(
        request,
        "jobs.html",
        section="Jobs",
        jobs=found.items,
        wanted=status,
        statuses=("queued", "running", "succeeded", "failed", "canceled"),
        working=len(workers) - len(watch.dead(workers)),
        older=found.next_cursor and with_query("/jobs", {"status": status}, cursor=found.next_cursor),
    )


@router.get("/{job_id}")
def show(job_id: str, request: Request, jobs: JobsDep) -> HTMLResponse:
    """One job."""
    return page(request, "job_page.html", section="Jobs", job=jobs.get(job_id))


@router.get("/{job_id}/line")
def line(job_id: str, request: Request, jobs: JobsDep) -> HTMLResponse:
    """The job as one line: what a page's script asks for when the job has ended."""
    return page(request, "job_alone.html", job=jobs.get(job_id))


@router.post("/{job_id}/cancel")
async def cancel(job_id: str, ask: Ask) -> RedirectResponse:
    """Ask the job to stop, and go and watch."""
    await ask(f"/v1/jobs/{quote(job_id, safe='')}/cancel")
    return see_other(f"/jobs/{job_id}")
