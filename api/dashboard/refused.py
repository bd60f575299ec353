"""Errors as pages: the same sentence and status as problem details, for a reader in a browser."""

from __future__ import annotations

import json

from fastapi import Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from .page import page

API = ("/v1", "/openapi.json", "/healthz", "/readyz", "/metrics", "/version", "/session")


def for_readers(request: Request, refusal: JSONResponse) -> Response:
    """The refusal as it is, or as a page where a person asked for one; a part of a page gets the sentence alone."""
    if request.url.path.startswith(API) or ("text/html" not in request.headers.get("accept", "") and not _is_part(request)):
        return refusal
    problem = json.loads(bytes(refusal.body))
    template = "refused_part.html" if _is_part(request) else "refused.html"
    answer: HTMLResponse = page(request, template, status=refusal.status_code, problem=problem)
    if "retry-after" in refusal.headers:
        answer.headers["retry-after"] = refusal.headers["retry-after"]
    return answer


def _is_part(request: Request) -> bool:
    return request.headers.get("hx-request") == "true"
