"""Observer: the outermost layer. Every request gets an id, a line in the log, a place in the metrics, and an answer.

An id that the caller sends along is kept when it is short and plain, so that a request can be followed through several
services. What nobody caught below is logged with its traceback and answered as a problem.
"""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .guard import HEADERS
from .logs import log
from .metrics import Metrics
from .refusals import refusal

SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


class Observer:
    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if SANE_ID.fullmatch(given) else uuid.uuid4().hex
        status = 0

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        began = time.perf_counter()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, marked)
            except Exception as error:
                log.exception("unexpected error", path=scope["path"])
                if status:
                    raise  # half an answer is out; the server cuts the connection
                answer = refusal(error)
                answer.headers.update(HEADERS)  # the guard has let go of this request
                await answer(scope, receive, marked)
            finally:
                self._note(scope, status, time.perf_counter() - began)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = _template(scope)
        self._metrics.requests.labels(route, _method(scope), str(status)).observe(seconds)
        principal = scope.get("state", {}).get("principal")
        log.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            route=route,
            status=status,
            milliseconds=round(1000 * seconds, 1),
            principal=None if principal is None else principal.name,
        )


def _template(scope: Scope) -> str:
    """`/v1/plans/{plan_id}`: the route's address as written, in FastAPI's own record of it where routers are nested."""
    route = scope.get("fastapi", {}).get("effective_route_context") or scope.get("route")
    return str(getattr(route, "path_format", None) or getattr(route, "path", "unmatched"))


def _method(scope: Scope) -> str:
    """A label of few values, whatever callers send."""
    method = str(scope["method"])
    return method if method in ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH") else "other"
