"""Hands: a worker for services under test, as a thread. It does jobs as they are written down, one after another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitplan.allocator.errors import BitplanError, Interrupted
from bitplan.api.exporting import export_folder
from bitplan.api.jobs import work
from bitplan.api.jobs.progress import JobProgress
from bitplan.api.problems import problem_of
from bitplan.api.schema import ExecuteBody, InspectBody, JobView, PlanBody, ProfileBody, SweepBody, VerifyBody
from bitplan.api.settings import Settings
from bitplan.api.store import Store


@contextmanager
def hands(store: Store, settings: Settings) -> Iterator[None]:
    """Inside, jobs are done."""
    stop = threading.Event()

    def serve() -> None:
        while not stop.wait(0.02):
            for job in store.jobs.active("queued"):
                do(job, store, settings)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)


def do(job: JobView, store: Store, settings: Settings) -> JobView:
    """Do a job, here and now; the job once it has ended."""
    if store.jobs.begin(job.id).status == "running":
        try:
            result = _result(job, store, settings.home, JobProgress(store, job.id, lambda: None))
        except Interrupted:
            store.jobs.finish(job.id)
        except BitplanError as error:
            store.jobs.finish(job.id, problem=problem_of(error))
        else:
            store.jobs.finish(job.id, result)
    return store.jobs.get(job.id)


def _result(job: JobView, store: Store, home: Path, tell: JobProgress) -> dict[str, Any]:
    match job.kind:
        case "inspect":
            inventory = work.inspect_model(store, home, InspectBody.model_validate(job.input), tell)
            return {"fingerprint": inventory.fingerprint, "href": f"/v1/inventory?model={job.input['model']}"}
        case "profile":
            profile = work.profile_model(store, home, ProfileBody.model_validate(job.input), tell)
            return {"profile_id": profile.id, "href": f"/v1/profiles/{profile.id}"}
        case "plan":
            plan = work.make_plan(store, home, PlanBody.model_validate(job.input), tell)
            return {"plan_id": plan.id, "href": f"/v1/plans/{plan.id}"}
        case "verify":
            plan = store.plan(VerifyBody.model_validate(job.input).plan_id)
            passed = work.verify_plan(store, home, plan, tell).passed
            return {"plan_id": plan.id, "passed": passed, "href": f"/v1/plans/{plan.id}"}
        case "execute":
            body = ExecuteBody.model_validate(job.input)
            work.execute_plan(store.plan(body.plan_id), home, export_folder(body.plan_id, body.to), tell)
            return {"plan_id": body.plan_id, "to": body.to, "href": f"/v1/plans/{body.plan_id}/exports/{body.to}"}
        case "sweep":
            return _sweep(job, store, home, tell)


def _sweep(job: JobView, store: Store, home: Path, tell: JobProgress) -> dict[str, Any]:
    """Cell after cell; it tells what the workflow tells."""
    body = SweepBody.model_validate(job.input)
    sweep = store.sweeps.create(body, job.id, job.owner)
    cells = body.plan_bodies()
    failed = 0
    for index, cell in enumerate(cells):
        tell("sweep", index, len(cells))
        try:
            store.sweeps.settle(sweep.id, index, plan_id=work.make_plan(store, home, cell, tell).id)
        except Interrupted:
            raise
        except BitplanError as error:
            store.sweeps.settle(sweep.id, index, problem=problem_of(error))
            failed += 1
    tell("sweep", len(cells), len(cells))
    return {"sweep_id": sweep.id, "plans": len(cells) - failed, "failed": failed, "href": f"/v1/sweeps/{sweep.id}"}
