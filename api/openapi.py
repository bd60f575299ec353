"""The description of the service at /openapi.json: what FastAPI gathers from the routes, and what holds for all of them.

Routes say what is theirs alone. That a key is asked for, that a body may be too large or a thing not there follows from a
route's address, method and parameters, and is written down here for all of them, so that none can forget it.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI

from .auth import COOKIE
from .depends import problems
from .gate import is_open
from .schema import Problem

TAGS = {
    "plans": "Which format each part of a model gets; made from a stored profile at once, or by a job.",
    "profiles": "What each part of a model loses in each format: measured once, reused for every budget and target.",
    "sweeps": "Many plans asked for in one go.",
    "exports": "Files of a plan that an engine loads.",
    "jobs": "One view of everything that takes longer than a request.",
    "catalog": "What can be asked for.",
    "keys": "API keys, for admins.",
    "session": "Signing in with a browser.",
    "health": "Whether the service works, for machines that watch it.",
}
METHODS = ("get", "post", "delete", "put", "patch")
REQUEST_ID = {"description": "the request's id, as in the log", "schema": {"type": "string"}}


def describe(app: FastAPI) -> None:
    """Make `app.openapi()` tell the whole story."""
    gather = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(gather())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS.items()]
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas.setdefault("Problem", Problem.model_json_schema())
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key, `bp_...`; not needed on loopback by default"},
        "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "What POST /session sets"},
    }
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                _complete(path, method, item[method])
    return document


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    operation["summary"] = _first_sentence(operation.get("description") or operation["summary"])
    if not is_open(path):
        operation["security"] = [{"key": []}, {"session": []}, {}]
    responses = operation["responses"]
    for status, response in problems(*_statuses(path, method, operation)).items():
        if status == 422 or str(status) not in responses:  # FastAPI's own 422 is not what is sent
            responses[str(status)] = response
    for response in responses.values():
        response.setdefault("headers", {})["X-Request-ID"] = REQUEST_ID
    operation["responses"] = dict(sorted(responses.items()))


def _first_sentence(text: str) -> str:
    """Up to the first full stop, semicolon or colon."""
    return re.split(r"(?<=\w)[.;:](?:\s|$)", text.strip(), maxsplit=1)[0].replace("\n", " ")


def _statuses(path: str, method: str, operation: dict[str, Any]) -> list[int]:
    """What any route of this shape may answer."""
    parameters = operation.get("parameters", ())
    places = {parameter["in"] for parameter in parameters}
    names = {parameter["name"] for parameter in parameters}
    statuses = [400, 403]  # a NUL in the address; a page of another site
    if not is_open(path):
        statuses += [401, 429]
    if path.startswith("/v1/") or path == "/session":
        statuses.append(503)
    if "path" in places:
        statuses.append(404)
    if parameters or "requestBody" in operation:
        statuses.append(422)
    if "requestBody" in operation:
        statuses += [408, 413]
    if "Idempotency-Key" in names:
        statuses.append(409)
    if method != "get":
        statuses.append(507)
    return statuses
