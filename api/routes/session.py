"""Signing in: a browser shows its key once and holds a cookie from then on.

The cookie is out of reach of scripts (HttpOnly) and never sent along from other sites (SameSite=Strict). The page works
without scripts.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from pydantic import ValidationError

from ..auth import COOKIE
from ..dashboard.page import page, see_other
from ..depends import StoreDep, problems
from ..gate import CHALLENGE
from ..problems import other_problem
from ..refusals import problem_response
from ..schema import SessionBody
from ..store.sessions import SESSION_HOURS

router = APIRouter(tags=["session"])
FORM = "application/x-www-form-urlencoded"
UNKNOWN = "the key is unknown, expired or revoked; ask an admin for another"
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": SessionBody.model_json_schema()}},
    }
}


@router.get("/login", include_in_schema=False)
def login(request: Request, next: str = "/") -> HTMLResponse:
    """Where a person enters their key."""
    return page(request, "login.html", next=_local(next), refused=None)


@router.post(
    "/session",
    operation_id="session_begin",
    status_code=204,
    summary="Sign in",
    openapi_extra=BODY,
    responses={204: {"description": "The cookie is set"}, **problems(401, 415, 422)},
)
async def begin(request: Request, store: StoreDep) -> Response:
    """Exchange a key for a cookie that is good for twelve hours. A form is answered with a page, JSON without a body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (FORM, "application/json"):
        return problem_response(other_problem("unsupported-media-type", f"send JSON, or a form as {FORM}"))
    body = _session_body(await request.body(), kind)
    key = await run_in_threadpool(store.keys.check, body.key.strip())
    if key is None:
        if kind == FORM:
            return page(request, "login.html", status=401, next=_local(body.next), refused=UNKNOWN)
        return problem_response(other_problem("unauthenticated", UNKNOWN), CHALLENGE)
    token = await run_in_threadpool(store.sessions.begin, key.id)
    response = see_other(_local(body.next)) if kind == FORM else Response(status_code=204)
    response.set_cookie(
        COOKIE, token, SESSION_HOURS * 3600, httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )
    return response


@router.delete("/session", operation_id="session_end", status_code=204, summary="Sign out")
def end(request: Request, store: StoreDep) -> Response:
    """End the session of the cookie that comes along, if any."""
    return _ended(request, store, Response(status_code=204))


@router.post("/session/end", include_in_schema=False)
def end_by_form(request: Request, store: StoreDep) -> Response:
    """The same for a form, which cannot send DELETE."""
    return _ended(request, store, see_other("/login"))


def _ended(request: Request, store: StoreDep, response: Response) -> Response:
    token = request.cookies.get(COOKIE)
    if token:
        store.sessions.end(token)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return response


def _session_body(raw: bytes, kind: str) -> SessionBody:
    try:
        fields = dict(parse_qsl(raw.decode())) if kind == FORM else json.loads(raw)
        return SessionBody.model_validate(fields)
    except ValidationError as error:
        complaints = [{**complaint, "loc": ("body", *complaint["loc"])} for complaint in error.errors()]
        raise RequestValidationError(complaints) from None
    except (ValueError, RecursionError):
        raise RequestValidationError([{"loc": ("body",), "msg": "neither JSON nor a form"}]) from None


def _local(path: str) -> str:
    """`path` where it leads to a page of this service, else the first page."""
    plain = path.isascii() and path.isprintable() and "\\" not in path
    return path if plain and path.startswith("/") and not path.startswith("//") else "/"
