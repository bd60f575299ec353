"""Health, readiness, version, and numbers for a monitoring system."""

from __future__ import annotations

import platform

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from ...allocator.errors import StoreUnavailable, UsageError
from ..depends import MetricsDep, StoreDep, WatchDep, problems
from ..jobs.engine import workflows_version
from ..jobs.presence import Watch
from ..logs import log
from ..problems import other_problem
from ..refusals import WITHHELD, problem_response
from ..schema import Health, Readiness, Version
from ..store import Store

router = APIRouter(tags=["health"])
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/healthz", operation_id="healthz", summary="Is the process alive?")
def healthz() -> Health:
    """The process answers. Says nothing of the store or the workers; see `/readyz`."""
    return Health(status="ok")


@router.get("/readyz", operation_id="readyz", summary="Can it take work?", response_model=Readiness, responses=problems(503))
def readyz(store: StoreDep, watch: WatchDep) -> JSONResponse:
    """The store answers, its schema is this version's, and a worker of this version is alive. Else 503 and a sentence for
    each that fails, under `failures`."""
    failures = _failures(store, watch)
    if failures:
        return problem_response(other_problem("not-ready", "; ".join(failures.values()), failures=failures))
    return JSONResponse(Readiness(status="ready").model_dump())


@router.get("/version", operation_id="version", summary="Which version is this?")
def version(request: Request) -> Version:
    """Of bitplan and of Python."""
    return Version(bitplan=request.app.version, python=platform.python_version())


@router.get(
    "/metrics",
    operation_id="prometheus",
    summary="Numbers for Prometheus",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Text exposition format"}},
)
def metrics(known: MetricsDep) -> Response:
    """Requests, jobs and workers in Prometheus' text format."""
    return Response(known.exposition(), headers={"content-type": EXPOSITION})


def _failures(store: Store, watch: Watch) -> dict[str, str]:
    try:
        store.database.check_schema()
        workers = store.workers.list()
    except StoreUnavailable as error:
        log.warning("not ready", reason=str(error))
        return {"store": WITHHELD[StoreUnavailable]}
    except UsageError as error:
        log.warning("not ready", reason=str(error))
        return {"schema": "another version of bitplan has changed the store; upgrade this one, or restart it"}
    failures = {}
    dead = watch.dead(workers)
    living, own = {worker.version for worker in workers if worker.id not in dead}, workflows_version()
    if not living:
        failures["workers"] = "no worker is alive, so jobs wait; start one with `bitplan worker`"
    elif own not in living:
        others = ", ".join(sorted(living))
        failures["workers"] = f"all workers are of another version ({others}, not {own}) and leave the jobs alone; upgrade them"
    return failures
