"""What the routes share: the store and settings handed to them, replies as responses, links between pages of a list."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request, Response
from pydantic import BaseModel

from .jobs.presence import Watch
from .jobs.queue import Jobs
from .lanes import Lanes
from .metrics import Metrics
from .planning import Planner
from .problems import MEDIA_TYPE
from .schema import JobView, ListView
from .settings import Settings
from .store import Store
from .store.artifacts import Artifacts
from .store.replies import Reply


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


async def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


async def _artifacts(request: Request) -> Artifacts:
    artifacts: Artifacts = request.app.state.artifacts
    return artifacts


async def _planner(request: Request) -> Planner:
    planner: Planner = request.app.state.planner
    return planner


async def _lanes(request: Request) -> Lanes:
    lanes: Lanes = request.app.state.lanes
    return lanes


async def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


async def _watch(request: Request) -> Watch:
    watch: Watch = request.app.state.watch
    return watch


SettingsDep = Annotated[Settings, Depends(_settings)]
StoreDep = Annotated[Store, Depends(_store)]
JobsDep = Annotated[Jobs, Depends(_jobs)]
ArtifactsDep = Annotated[Artifacts, Depends(_artifacts)]
PlannerDep = Annotated[Planner, Depends(_planner)]
LanesDep = Annotated[Lanes, Depends(_lanes)]
MetricsDep = Annotated[Metrics, Depends(_metrics)]
WatchDep = Annotated[Watch, Depends(_watch)]
KeyHeader = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before")]
Limit = Annotated[int, Query(ge=1, le=200)]

Responses = dict[int | str, dict[str, Any]]
PROBLEM_TEXTS = {
    400: "The request is not understood",
    401: "No key, or none that is good",
    403: "The key may not do that, or a page of another site asks",
    404: "There is no such thing",
    406: "Not in a form that is offered",
    408: "The request took too long to arrive",
    409: "Not in this state",
    413: "The body is too large",
    415: "The body is of a kind that is not read here",
    416: "The file has no such part",
    422: "The request does not match the schema, or cannot be done as written",
    429: "Too many requests for now",
    500: "Something broke that should not",
    503: "The store cannot be used for the moment, or there is no worker",
    507: "There is no room left to write",
}
RETRY_AFTER = {"Retry-After": {"description": "seconds to wait", "schema": {"type": "integer"}}}


def problems(*statuses: int) -> Responses:
    """How a route may refuse, for its description: problem details with these statuses."""
    return {status: _problem_response(status) for status in statuses}


def _problem_response(status: int) -> dict[str, Any]:
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    headers = {"headers": RETRY_AFTER} if status in (408, 429, 503) else {}
    return {"description": PROBLEM_TEXTS[status], "content": content, **headers}


NOT_MODIFIED: Responses = {304: {"description": "As the `ETag` in `If-None-Match` says, the caller has it already"}}
JOB_RESPONSE: dict[int | str, dict[str, Any]] = {
    202: {
        "model": JobView,
        "description": "A job was made; follow `Location` until it has ended",
        "headers": {"Location": {"schema": {"type": "string"}}, "Retry-After": {"schema": {"type": "integer"}}},
        "links": {
            name: {"operationId": name, "parameters": {"job_id": "$response.body#/id"}}
            for name in ("jobs_get", "jobs_events", "jobs_cancel")
        },
    }
}


def as_reply(model: BaseModel, status: int = 200, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, model.model_dump_json(), {"content-type": "application/json", **named})


def job_reply(job: JobView) -> Reply:
    """202: the work is a job now."""
    return as_reply(job, 202, location=job.links["self"], retry_after="1")


def as_response(reply: Reply) -> Response:
    return Response(reply.body, reply.status, reply.headers)


def tagged(request: Request, body: str) -> Response:
    """A JSON document with a strong ETag; 304 without a body when the caller has it already."""
    tag = f'"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    held = {held.strip() for held in request.headers.get("if-none-match", "").split(",")}
    if tag in held or "*" in held:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


def as_page(request: Request, found: ListView[Any]) -> Response:
    """A page of a list, and where the next one is (RFC 8288), relative to the service, whatever the request calls it."""
    headers = {}
    if found.next_cursor is not None:
        url = request.url.include_query_params(cursor=found.next_cursor)
        headers["link"] = f'<{url.path}?{url.query}>; rel="next"'
    return Response(found.model_dump_json(), headers=headers, media_type="application/json")
