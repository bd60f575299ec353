"""create_app(settings): the service as an ASGI application over one store.

It reads and writes the store, plans from stored profiles, and leaves everything that needs torch to the worker. Every
error leaves as problem details, and only here: routes and what they call simply raise.
"""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..allocator.errors import BitplanError
from .guard import Guard
from .problems import MEDIA_TYPE, PREFIX, other_problem, problem_of
from .routes import catalog, health, jobs, pages, plans, profiles
from .schema import Problem
from .settings import Settings
from .store import Store

PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "model": Problem,
        "description": "The request cannot be served; see `type` and `detail`",
        "content": {MEDIA_TYPE: {}},
    },
}


def create_app(settings: Settings) -> FastAPI:
    """The application; its store is open until the application shuts down."""
    store = Store.open(settings.database_url)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        store.close()

    app = FastAPI(
        title="bitplan",
        summary="Choose how many bits each part of a network gets, prove the choice, and measure it.",
        version=_version(),
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        responses=PROBLEM_RESPONSES,
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.store = store
    app.add_middleware(Guard)
    for part in (plans, profiles, jobs, catalog):
        app.include_router(part.router, prefix="/v1")
    app.include_router(health.router)
    app.include_router(pages.router)
    app.add_exception_handler(BitplanError, _tree_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)
    return app


def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("bitplan")


def _problem(document: dict[str, Any], headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(document, status_code=document["status"], media_type=MEDIA_TYPE, headers=headers)


async def _tree_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BitplanError)
    return _problem(problem_of(error))


async def _validation_error(_request: Request, error: Exception) -> JSONResponse:
    """Each complaint with a JSON pointer into the body, or the name of the parameter."""
    assert isinstance(error, RequestValidationError)
    errors = []
    for complaint in error.errors():
        place, *path = complaint["loc"]
        pointer = "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)
        key = {"pointer": pointer} if place == "body" else {"parameter": pointer.removeprefix("/")}
        errors.append({**key, "detail": complaint["msg"]})
    first = next(iter(errors[0].values())) or "the body"
    return _problem(other_problem("invalid-body", f"{first}: {errors[0]['detail']}", errors=errors))


async def _http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    slug = {404: "not-found", 413: "body-too-large", 501: "not-available", 503: "not-ready"}.get(error.status_code, "http")
    document = {"type": PREFIX + slug, "title": error.detail, "status": error.status_code, "detail": error.detail}
    return _problem(document, dict(error.headers or {}))


async def _unexpected_error(_request: Request, error: Exception) -> JSONResponse:
    traceback.print_exception(error)
    return _problem(other_problem("internal-error", "the service's log has the traceback"))
