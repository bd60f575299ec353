"""The one error shape: problem details (RFC 9457) out of the tree of errors, and the tree back out of them.

Every class of `allocator/errors.py` has one line in PROBLEMS, and a test walks the tree to see that none is forgotten.
The service, the jobs, the client and `--json` on the command line all speak through these two functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..allocator.errors import (
    BitplanError,
    DiskFull,
    Forbidden,
    Infeasible,
    Interrupted,
    ModelError,
    NotFound,
    PlanMismatch,
    StoreUnavailable,
    UnknownName,
    UsageError,
    VerificationFailed,
)

MEDIA_TYPE = "application/problem+json"
PREFIX = "/problems/"


@dataclass(frozen=True)
class Kind:
    """What all problems of one type share; `exit_status` is what the command line returns for it."""

    slug: str
    status: int
    exit_status: int
    title: str


PROBLEMS: dict[type[BitplanError], Kind] = {
    BitplanError: Kind("error", 500, 1, "bitplan could not do this"),
    UsageError: Kind("usage", 422, 2, "The request cannot be meant as written"),
    UnknownName: Kind("unknown-name", 422, 2, "There is nothing of that name"),
    ModelError: Kind("model-unreadable", 422, 2, "The model cannot be read or planned"),
    Infeasible: Kind("budget-infeasible", 422, 3, "No plan fits the budget"),
    PlanMismatch: Kind("plan-mismatch", 409, 2, "The plan was made for another model"),
    VerificationFailed: Kind("verification-failed", 422, 4, "The executed model breaks the plan's promise"),
    NotFound: Kind("not-found", 404, 2, "There is no such thing"),
    Forbidden: Kind("forbidden", 403, 2, "The key may not do that"),
    StoreUnavailable: Kind("store-unavailable", 503, 1, "The store cannot be used for the moment"),
    DiskFull: Kind("disk-full", 507, 1, "There is no room left to write"),
    Interrupted: Kind("interrupted", 409, 130, "Stopped on request"),
}
# Problems that the service itself finds, with no class behind them.
OTHER_PROBLEMS: dict[str, Kind] = {
    kind.slug: kind
    for kind in (
        Kind("invalid-body", 422, 2, "The request does not match the schema"),
        Kind("idempotency-conflict", 422, 2, "The Idempotency-Key was used for another request"),
        Kind("idempotency-in-flight", 409, 2, "The first request with this Idempotency-Key is still being answered"),
        Kind("job-not-cancelable", 409, 2, "The job has already ended"),
        Kind("not-available", 501, 2, "This version cannot do that"),
        Kind("body-too-large", 413, 2, "The request is too large"),
        Kind("body-too-slow", 408, 2, "The request took too long to arrive"),
        Kind("unsupported-media-type", 415, 2, "The body is of a kind that is not read here"),
        Kind("unauthenticated", 401, 2, "The service does not know who asks"),
        Kind("foreign-host", 403, 2, "The service is not called that"),
        Kind("rate-limited", 429, 2, "Too many requests for now"),
        Kind("foreign-origin", 403, 2, "Pages of other sites may not write here"),
        Kind("http", 400, 2, "The request is not understood"),
        Kind("not-ready", 503, 1, "The service cannot take work yet"),
        Kind("worker-lost", 500, 1, "The worker died on this job again and again"),
        Kind("child-canceled", 409, 130, "A job that this one waited for was canceled"),
        Kind("internal-error", 500, 1, "Something broke that should not"),
    )
}


def kind_of(error: BitplanError) -> Kind:
    """The entry of the nearest class in PROBLEMS."""
    return next(PROBLEMS[base] for base in type(error).__mro__ if base in PROBLEMS)


def problem_of(error: BitplanError) -> dict[str, Any]:
    """The problem document of an error of the tree."""
    kind = kind_of(error)
    document: dict[str, Any] = {
        "type": PREFIX + kind.slug,
        "title": kind.title,
        "status": kind.status,
        "detail": str(error),
    }
    if isinstance(error, Infeasible):
        document |= {"minimum_bytes": error.minimum_bytes, "maximum_bytes": error.maximum_bytes}
        if error.minimum_latency_ms is not None:
            document["minimum_latency_ms"] = error.minimum_latency_ms
    elif isinstance(error, UnknownName):
        document |= {"kind": error.kind, "name": error.name, "known": list(error.known)}
    elif isinstance(error, VerificationFailed):
        report = error.report
        document["report"] = report.to_json() if hasattr(report, "to_json") else report
    return document


def other_problem(slug: str, detail: str, **members: Any) -> dict[str, Any]:
    """A problem document of one of OTHER_PROBLEMS."""
    kind = OTHER_PROBLEMS[slug]
    return {"type": PREFIX + slug, "title": kind.title, "status": kind.status, "detail": detail, **members}


def error_of(document: dict[str, Any]) -> BitplanError:
    """The error that a problem document describes: the inverse of `problem_of`, for the client."""
    slug = str(document.get("type", "")).removeprefix(PREFIX)
    detail = str(document.get("detail") or document.get("title") or "the service gave no reason")
    error_class = next((cls for cls, kind in PROBLEMS.items() if kind.slug == slug), None)
    if error_class is Infeasible:
        least = document.get("minimum_latency_ms")
        smallest, largest = int(document["minimum_bytes"]), int(document["maximum_bytes"])
        return Infeasible(detail, smallest, largest, minimum_latency_ms=None if least is None else float(least))
    if error_class is UnknownName:
        return UnknownName(document["kind"], document["name"], document["known"])
    if error_class is VerificationFailed:
        return VerificationFailed(detail, document.get("report"))
    if error_class is not None:
        return error_class(detail)
    if slug in OTHER_PROBLEMS and OTHER_PROBLEMS[slug].exit_status == 2:
        return UsageError(detail)
    return BitplanError(detail)
