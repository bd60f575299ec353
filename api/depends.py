"""What the routes share: the store and settings handed to them, replies as responses, links between pages of a list."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request, Response
from pydantic import BaseModel

from .schema import JobView
from .settings import Settings
from .store import Store
from .store.replies import Reply


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _store(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


SettingsDep = Annotated[Settings, Depends(_settings)]
StoreDep = Annotated[Store, Depends(_store)]
KeyHeader = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before")]
Limit = Annotated[int, Query(ge=1, le=200)]

JOB_RESPONSE: dict[int | str, dict[str, Any]] = {
    202: {
        "model": JobView,
        "description": "A job was made; follow `Location` until it has ended",
        "headers": {"Location": {"schema": {"type": "string"}}, "Retry-After": {"schema": {"type": "integer"}}},
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


def tagged(request: Request, model: BaseModel) -> Response:
    """A document with a strong ETag; 304 without a body when the caller has it already."""
    body = model.model_dump_json()
    tag = f'"{hashlib.sha256(body.encode()).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    held = {held.strip() for held in request.headers.get("if-none-match", "").split(",")}
    if tag in held or "*" in held:
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type="application/json")


def link_next(request: Request, response: Response, cursor: str | None) -> None:
    """RFC 8288: where the next page is."""
    if cursor is not None:
        response.headers["Link"] = f'<{request.url.include_query_params(cursor=cursor)}>; rel="next"'
