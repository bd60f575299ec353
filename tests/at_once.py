"""Jobs done at once in the test's own process, for tests of everything around them: no engine, no worker, no steps."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from bitplan.allocator.errors import BitplanError, Interrupted
from bitplan.api.jobs import work
from bitplan.api.jobs.progress import JobProgress
from bitplan.api.problems import problem_of
from bitplan.api.schema import ExecuteBody, InspectBody, JobView, PlanBody, ProfileBody, SweepBody, VerifyBody
from bitplan.api.store import Store


def do_job(job: JobView, store: Store, home: Path) -> JobView:
    """The job once it has ended."""
    job = store.jobs.begin(job.id)
    try:
        result = _perform(job, store, home, JobProgress(store, job.id, lambda: None))
    except Interrupted:
        store.jobs.finish(job.id)
    except BitplanError as error:
        store.jobs.finish(job.id, problem=problem_of(error))
    else:
        store.jobs.finish(job.id, result)
    return store.jobs.get(job.id)


def serve_jobs(store: Store, home: Path, stop: threading.Event) -> None:
    """Do jobs in the order they came until `stop` is set."""
    while not stop.is_set():
        waiting = store.jobs.active("queued")
        if waiting:
            do_job(waiting[0], store, home)
        else:
            stop.wait(0.02)


def _perform(job: JobView, store: Store, home: Path, tell: JobProgress) -> dict[str, Any]:
    if job.kind == "inspect":
        inventory = work.inspect_model(store, home, InspectBody.model_validate(job.input), tell)
        return {"fingerprint": inventory.fingerprint, "href": f"/v1/inventory?model={job.input['model']}"}
    if job.kind == "profile":
        report = work.profile_model(store, home, ProfileBody.model_validate(job.input), tell)
        return {"profile_id": report.id, "href": f"/v1/profiles/{report.id}"}
    if job.kind == "plan":
        plan = work.make_plan(store, home, PlanBody.model_validate(job.input), tell)
        return {"plan_id": plan.id, "href": f"/v1/plans/{plan.id}"}
    if job.kind == "sweep":
        return _sweep(job, store, home, tell)
    plan_id = VerifyBody(plan_id=job.input["plan_id"]).plan_id
    if job.kind == "verify":
        verified = work.verify_plan(store, home, store.plan(plan_id), tell)
        return {"plan_id": plan_id, "passed": verified.passed, "href": f"/v1/plans/{plan_id}"}
    body = ExecuteBody.model_validate(job.input)
    work.execute_plan(store.plan(plan_id), home, f"exports/{plan_id}/{body.to}", tell)
    return {"plan_id": plan_id, "to": body.to, "href": f"/v1/plans/{plan_id}/exports/{body.to}"}


def _sweep(job: JobView, store: Store, home: Path, tell: JobProgress) -> dict[str, Any]:
    body = SweepBody.model_validate(job.input)
    sweep = store.sweeps.create(body, job.id, job.owner)
    failed = 0
    for index, cell in enumerate(body.plan_bodies()):
        tell("sweep", index, len(sweep.cells))
        try:
            store.sweeps.settle(sweep.id, index, work.make_plan(store, home, cell, tell).id)
        except BitplanError as error:
            store.sweeps.settle(sweep.id, index, problem=problem_of(error))
            failed += 1
    tell("sweep", len(sweep.cells), len(sweep.cells))
    return {"sweep_id": sweep.id, "plans": len(sweep.cells) - failed, "failed": failed, "href": f"/v1/sweeps/{sweep.id}"}
