"""What every worker does every few seconds, so that no job is lost whoever dies: it takes over what dead workers ran, has
the engine know every job of the store, and has the store know every job that ended in the engine."""

from __future__ import annotations

import os
import time

from dbos import DBOS, WorkflowStatus

from ..logs import log
from ..problems import other_problem
from ..schema import JobView, Progress, WorkerView
from .desk import Desk
from .engine import ENDED, workflows_version
from .presence import BEAT_SECONDS, Watch

GRACE_SECONDS = 20.0
WAITING = "waiting for a worker of version "


class Caretaker:
    """Look after the store's jobs, again and again, in one worker."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._watch = Watch(desk.presence.view.host, longest_look=2 * BEAT_SECONDS)
        self._called_off: dict[str, float] = {}  # jobs asked to stop: since when, by this process's own clock

    def look_after(self) -> None:
        """Once around. Raises an error of the database when that is away."""
        running = self._desk.engine.running()  # first: whoever runs something by then is among the workers by now
        workers = self._desk.store.workers.list()
        self._desk.dead = frozenset(self._watch.dead(workers))
        alive = [worker for worker in workers if worker.id not in self._desk.dead]
        self._take_over(running, workers, {worker.id for worker in alive} | {self._desk.presence.view.id})
        for worker_id in self._desk.dead - {self._desk.presence.view.id}:
            self._desk.store.workers.remove(worker_id)
        self._reconcile({worker.version for worker in alive})
        self._end_what_does_not_stop()

    def _take_over(self, running: list[WorkflowStatus], workers: list[WorkerView], alive: set[str]) -> None:
        """Have what ran in dead workers run again, and note down what killed them."""
        lost = [status for status in running if status.app_version == workflows_version() and status.executor_id not in alive]
        blamed = {worker.id: worker.job_id for worker in workers}
        for status in lost:
            if status.executor_id and blamed.get(status.executor_id) == status.workflow_id:
                self._desk.engine.note_death(status.workflow_id, status.executor_id, self._progress(status.workflow_id))
        dead = sorted({status.executor_id for status in lost if status.executor_id})
        if dead:
            log.info("taken over", workflows=[status.workflow_id for status in lost], workers=dead)
            DBOS._recover_pending_workflows(dead)

    def _progress(self, workflow_id: str) -> Progress | None:
        return None if " " in workflow_id else self._desk.store.jobs.get(workflow_id).progress

    def _reconcile(self, versions: set[str]) -> None:
        jobs = self._desk.store.jobs.active()
        states = self._desk.engine.states(job.id for job in jobs)
        for job in jobs:
            state = states.get(job.id)
            if job.status == "canceling" and (state is None or state.status not in ("PENDING", *ENDED)):
                self._desk.engine.cancel([job.id] if state is not None else [])
                self._desk.call_off(job.id)
            elif state is None:
                self._desk.engine.ask(job.id, job.kind)
            elif state.status == "CANCELLED":
                self._desk.call_off(job.id)
            elif state.status in ENDED:  # a job ends in the store first: this one could not
                detail = f"the job ended with {state.error or state.status} and could not say more; submit it again"
                self._desk.store.jobs.finish(job.id, problem=other_problem("internal-error", detail))
            elif state.app_version is not None and state.app_version not in versions:
                self._say_that_it_waits(job, state.app_version)

    def _say_that_it_waits(self, job: JobView, version: str) -> None:
        stage = f"{WAITING}{version}"
        if job.progress is None or job.progress.stage != stage:
            progress = Progress(stage=stage, done=0, total=0, fraction=0.0, eta_seconds=None)
            self._desk.store.jobs.report(job.id, progress)

    def _end_what_does_not_stop(self) -> None:
        """End this process when it goes on working on a job that was called off a while ago: other jobs are resumed."""
        asked = {job.id for job in self._desk.store.jobs.active("canceling")}
        now = time.monotonic()
        self._called_off = {job_id: self._called_off.get(job_id, now) for job_id in asked}
        at_work = self._desk.presence.view.job_id or ""
        for job_id, since in self._called_off.items():
            if now - since > GRACE_SECONDS and at_work.partition(" ")[0] == job_id:
                log.warning("did not stop when called off; this worker ends", job_id=job_id)
                self._desk.store.jobs.finish(job_id)
                self._desk.engine.cancel([job_id, at_work])
                os._exit(1)
