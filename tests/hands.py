"""Hands: a worker for services under test, as a thread. It does jobs as they are written down, one after another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
    """Do a job, here and now."""
    if store.jobs.begin(job.id).status == "running":
        try:
            store.jobs.finish(job.id, _result(job, store, settings))
        except Interrupted:
            store.jobs.finish(job.id)
        except BitplanError as error:
            store.jobs.finish(job.id, problem=problem_of(error))
    return store.jobs.get(job.id)


def _result(job: JobView, store: Store, settings: Settings) -> dict[str, Any]:
    tell = JobProgress(store, job.id, lambda: None)
    home = settings.home
    match job.kind:
        case "inspect":
            return {"fingerprint": work.inspect_model(store, home, InspectBody.model_validate(job.input), tell).fingerprint}
        case "profile":
            return {"profile_id": work.profile_model(store, home, ProfileBody.model_validate(job.input), tell).id}
        case "plan":
            return {"plan_id": work.make_plan(store, home, PlanBody.model_validate(job.input), tell).id}
        case "verify":
            plan = store.plan(VerifyBody.model_validate(job.input).plan_id)
            return {"plan_id": plan.id, "passed": work.verify_plan(store, home, plan, tell).passed}
        case "execute":
            body = ExecuteBody.model_validate(job.input)
            work.execute_plan(store.plan(body.plan_id), home, export_folder(body.plan_id, body.to), tell)
            return {"plan_id": body.plan_id, "to": body.to}
        case "sweep":
            return _sweep(job, store, settings, tell)


def _sweep(job: JobView, store: Store, settings: Settings, tell: JobProgress) -> dict[str, Any]:
    body = SweepBody.model_validate(job.input)
    sweep = store.sweeps.create(body, job.id, job.owner)
    bodies = body.plan_bodies()
    for index, cell in enumerate(bodies):
        tell("sweep", index, len(bodies))
        try:
            store.sweeps.settle(sweep.id, index, plan_id=work.make_plan(store, settings.home, cell, tell).id)
        except Interrupted:
            raise
        except BitplanError as error:
            store.sweeps.settle(sweep.id, index, problem=problem_of(error))
    return {"sweep_id": sweep.id, "href": f"/v1/sweeps/{sweep.id}"}
