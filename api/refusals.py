"""Refusals: every error as the response it becomes. Routes and what they call simply raise.

The one place where an error turns into problem details (RFC 9457); the handlers of the application, the gate before it
and the observer around both ask here.
"""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..allocator.errors import BitplanError, DiskFull, StoreUnavailable
from .logs import log
from .problems import MEDIA_TYPE, PREFIX, other_problem, problem_of

RETRY_SECONDS = "2"
# Where the store lies is nobody's business outside; the log has the whole sentence.
WITHHELD: dict[type[BitplanError], str] = {
    StoreUnavailable: "the store cannot be used for the moment; try again in a few seconds",
    DiskFull: "there is no room left to write; somebody has to free some",
}
SLUGS = {401: "unauthenticated", 403: "forbidden", 404: "not-found", 413: "body-too-large", 503: "not-ready"}


def refusal(error: Exception) -> JSONResponse:
    """The response to a request that raised `error`."""
    if isinstance(error, (StoreUnavailable, DiskFull)):
        log.warning("refused", reason=str(error))
        return problem_response({**problem_of(error), "detail": WITHHELD[type(error)]})
    if isinstance(error, BitplanError):
        return problem_response(problem_of(error))
    if isinstance(error, RequestValidationError):
        return problem_response(_invalid(error))
    if isinstance(error, HTTPException):
        slug = SLUGS.get(error.status_code, "http")
        document = {"type": PREFIX + slug, "title": error.detail, "status": error.status_code, "detail": error.detail}
        return problem_response(document, dict(error.headers or {}))
    return problem_response(other_problem("internal-error", "the service's log has the traceback"))


def problem_response(document: dict[str, Any], headers: dict[str, str] | None = None) -> JSONResponse:
    """A problem document on its way out; what may pass by itself says when to ask again."""
    later = {"Retry-After": RETRY_SECONDS} if document["status"] in (408, 429, 503) else {}
    return JSONResponse(document, document["status"], {**later, **(headers or {})}, MEDIA_TYPE)


def _invalid(error: RequestValidationError) -> dict[str, Any]:
    """Each complaint with a JSON pointer into the body, or the name of the parameter."""
    errors = []
    for complaint in error.errors():
        place, *path = complaint["loc"]
        pointer = "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)
        key = {"pointer": pointer} if place == "body" else {"parameter": pointer.removeprefix("/")}
        errors.append({**key, "detail": complaint["msg"]})
    first = next(iter(errors[0].values())) or "the body"
    return other_problem("invalid-body", f"{first}: {errors[0]['detail']}", errors=errors)
