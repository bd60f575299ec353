"""Jobs: what the service's own process does with work, which is to ask for it, look at it and call it off.

A job is a row of the store, written first, and a workflow of the engine under the same id. When the process dies between
the two, or the engine has no tables yet, the next worker's beat asks the engine again: no job is lost, none done twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..logs import log
from ..schema import JobKind, JobStatus, JobView, ListView
from ..store import Store
from .engine import Engine


@dataclass(frozen=True, eq=False)
class Jobs:
    """The jobs of one store. Nothing here loads torch."""

    store: Store
    engine: Engine

    def submit(self, kind: JobKind, document: dict[str, Any], *, owner: str = "", parent: str | None = None) -> JobView:
        """Ask for work: a new job, or the unfinished one that does the same."""
        job = self.store.jobs.submit(kind, document, owner, parent)
        if job.status == "queued":
            self.engine.try_ask(job.id, kind)
        log.info("job", job_id=job.id, kind=kind, status=job.status)
        return job

    def get(self, job_id: str) -> JobView:
        """Raises NotFound."""
        return self.store.jobs.get(job_id)

    def list(
        self,
        status: JobStatus | None = None,
        kind: JobKind | None = None,
        owner: str | None = None,
        parent: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> ListView[JobView]:
        """One page of jobs, newest first."""
        return self.store.jobs.list(status, kind, owner, parent, cursor, limit)

    def cancel(self, job_id: str) -> JobView:
        """Ask a job to stop; one that has ended stays as it is. Raises NotFound."""
        job = self.store.jobs.cancel(job_id)
        log.info("job", job_id=job.id, kind=job.kind, status=job.status)
        return job

    def counts(self) -> dict[tuple[str, str], int]:
        """(kind, status) -> how many jobs."""
        return self.store.jobs.counts()
