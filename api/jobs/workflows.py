"""The workflows: what the engine runs for each kind of job. Each begins with the job's row and ends with it.

Steps are remembered by the engine once they are done; what a step leaves behind is files and rows that are put once
however often it is done. No step raises what it finds wrong with the request, because the engine could not hand the error
back as it was: it returns a problem document, and the job ends with that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dbos import DBOS
from dbos._error import DBOSWorkflowCancelledError
from sqlalchemy.exc import SQLAlchemyError

from ...allocator.errors import BitplanError, Interrupted
from ..logs import log
from ..problems import problem_of
from ..schema import ExecuteBody, InspectBody, JobKind, JobView, VerifyBody
from . import work
from .desk import Desk, Failed
from .engine import BLOCK
from .parents import plan, sweep
from .profiling import do_shared_piece, profile
from .progress import JobProgress
from .steps import step, unexpected

Result = dict[str, Any]
Body = Callable[[Desk, JobView, JobProgress], Result]


def register_workflows(desk: Desk) -> None:
    """Tell the engine how each kind of job is done at this desk. Once in a process."""
    for kind, body in BODIES.items():
        _register(desk, kind, body)

    @DBOS.workflow(name=BLOCK)
    def block(job_id: str, name: str) -> Result | None:
        with _or_the_worker_ends():
            return do_shared_piece(desk, job_id, name)


def _register(desk: Desk, kind: JobKind, body: Body) -> None:
    limit = None if kind in ("plan", "sweep") else 100  # parents outlive any number of workers; `Desk` is stricter with the rest

    @DBOS.workflow(name=kind, max_recovery_attempts=limit)
    def run(job_id: str) -> None:
        with _or_the_worker_ends():
            perform(desk, job_id, body)


@contextmanager
def _or_the_worker_ends() -> Iterator[None]:
    """For the whole of a workflow. One that an error leaves would stay with this worker for ever, since only what dead workers
    ran is taken over, and an error that comes so far is one that could not be written down: the disk of the database is full,
    or it was away for longer than anybody's patience. So this process ends, and the next one goes on."""
    try:
        yield
    except DBOSWorkflowCancelledError:
        raise
    except Exception:
        log.exception("cannot write down what becomes of a job; this worker ends, and another goes on")
        os._exit(1)


def perform(desk: Desk, job_id: str, body: Body) -> None:
    """Do a job and write down how it ended. Raises an error of the database when that is not possible."""
    job = desk.store.jobs.begin(job_id)
    if job.finished:
        return
    about, began = log.bind(job_id=job.id, kind=job.kind), time.monotonic()
    about.info("job", status=job.status, attempt=job.attempt)
    try:
        if job.status == "canceling":
            raise Interrupted("canceled on request; what was measured is kept")
        result = body(desk, job, desk.teller(job.id))
    except (Interrupted, DBOSWorkflowCancelledError):
        desk.call_off(job.id)
    except Failed as error:
        desk.store.jobs.finish(job.id, problem=error.problem)
    except BitplanError as error:
        desk.store.jobs.finish(job.id, problem=problem_of(error))
    except SQLAlchemyError:  # of the engine, which could not note a step
        raise
    except Exception as error:
        desk.store.jobs.finish(job.id, problem=unexpected(error))
    else:
        desk.store.jobs.finish(job.id, result)
    about.info("job", status=desk.store.jobs.get(job.id).status, seconds=round(time.monotonic() - began, 3))


def inspect(desk: Desk, job: JobView, tell: JobProgress) -> Result:
    def look() -> Result:
        with desk.networks(job.id):
            inventory = work.inspect_model(desk.store, desk.home, InspectBody.model_validate(job.input), tell)
        return {"fingerprint": inventory.fingerprint, "href": f"/v1/inventory?model={job.input['model']}"}

    return step("inspect", look)


def verify(desk: Desk, job: JobView, tell: JobProgress) -> Result:
    plan_id = VerifyBody.model_validate(job.input).plan_id

    def measure() -> Result:
        plan = desk.store.plan(plan_id)
        with desk.networks(job.id):
            desk.fetch(work.renderings_of(plan))
            report = work.verify_plan(desk.store, desk.home, plan, tell)
        return {"plan_id": plan_id, "passed": report.passed, "href": f"/v1/plans/{plan_id}"}

    return step("verify", measure)


def execute(desk: Desk, job: JobView, tell: JobProgress) -> Result:
    body = ExecuteBody.model_validate(job.input)
    folder = f"exports/{body.plan_id}/{body.to}"

    def write() -> Result:
        if not desk.artifacts.files(folder):
            plan = desk.store.plan(body.plan_id)
            with desk.networks(job.id):
                desk.fetch(work.renderings_of(plan))
                work.execute_plan(plan, desk.home, folder, tell)
            desk.publish([folder])
        return {"plan_id": body.plan_id, "to": body.to, "href": f"/v1/plans/{body.plan_id}/exports/{body.to}"}

    return step("execute", write)


BODIES: dict[JobKind, Body] = {
    "inspect": inspect,
    "profile": profile,
    "plan": plan,
    "verify": verify,
    "execute": execute,
    "sweep": sweep,
}
