"""create_app(settings): the service as an ASGI application over one store.

It reads and writes the store, plans from stored profiles, and leaves everything that needs torch to the worker. Every
error leaves as problem details, and only here: routes and what they call simply raise.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from ..allocator.errors import BitplanError
from .dashboard import pages, refused
from .gate import Gate
from .guard import Guard
from .jobs.engine import Engine
from .jobs.presence import Watch, host_name
from .jobs.queue import Jobs
from .lanes import Lanes
from .metrics import Metrics
from .observer import Observer
from .openapi import describe
from .planning import Planner
from .refusals import refusal
from .routes import catalog, exports, health, jobs, keys, plans, profiles, session, sweeps
from .settings import Settings
from .store import Store
from .store.artifacts import Artifacts


def create_app(settings: Settings) -> FastAPI:
    """The application; its store is open until the application shuts down.

    A request passes the observer, the guard and the gate, in this order, before it comes to a route."""
    store = Store.open(settings.database_url)
    engine = Engine(settings.database_url)
    queue, watch = Jobs(store, engine), Watch(host_name())
    metrics, lanes = Metrics(store, queue, watch), Lanes()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        lanes.close()
        engine.close()
        store.close()

    app = FastAPI(
        title="bitplan",
        summary="Choose how many bits each part of a network gets, prove the choice, and measure it.",
        version=_version(),
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # one address each
        lifespan=lifespan,
    )
    app.state.settings = settings
    app.state.store = store
    app.state.jobs = queue
    app.state.planner = Planner(store, settings.home)
    app.state.lanes = lanes
    app.state.artifacts = Artifacts(settings.artifacts_root)
    app.state.watch = watch
    app.state.metrics = metrics
    app.add_middleware(Gate, settings=settings, store=store)  # the one added last is passed first
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Observer, metrics=metrics)
    for part in (plans, profiles, jobs, sweeps, exports, catalog, keys):
        app.include_router(part.router, prefix="/v1")
    app.include_router(catalog.addresses)
    for part in (health, session, pages):
        app.include_router(part.router)
    for error in (BitplanError, RequestValidationError, HTTPException):
        app.add_exception_handler(error, _refuse)
    describe(app)
    return app


def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("bitplan")


async def _refuse(request: Request, error: Exception) -> Response:
    return refused.for_readers(request, refusal(error))
