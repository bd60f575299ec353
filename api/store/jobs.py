"""JobQueue: the table of jobs and every step that a job's state may take.

    queued ──claim──> running ──finish──> succeeded | failed
      │                 │  └──release / recover──> queued          (the worker stopped or died; at most ATTEMPTS times)
      │                 └──cancel──> canceling ──finish──> canceled
      └──cancel──> canceled

Each step is one transaction, so that a process killed at any moment leaves every job in one of these states. The last
three never change again. Two requests for the same work are one job as long as that job is not finished.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ...allocator.errors import NotFound
from ..problems import other_problem
from ..schema import ACTIVE, JobKind, JobStatus, JobView, ListView, Problem, Progress
from .tables import Database, JobRow, page, timestamp

ATTEMPTS = 3


class JobQueue:
    def __init__(self, database: Database) -> None:
        self.database = database

    def submit(self, kind: JobKind, document: dict[str, Any]) -> JobView:
        """Ask for work: a new job, or the unfinished one that does the same."""
        text = json.dumps(document, sort_keys=True)
        content = hashlib.sha256(f"{kind} {text}".encode()).hexdigest()
        with self.database.write() as session:
            row = session.scalar(select(JobRow).where(JobRow.content == content, JobRow.status.in_(("queued", "running"))))
            if row is None:
                row = JobRow(
                    id=f"job_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(5)}",
                    kind=kind,
                    content=content,
                    status="queued",
                    input=text,
                    attempt=0,
                    version=1,
                    created_at=timestamp(),
                )
                session.add(row)
                session.flush()
            return _view(row)

    def claim(self) -> JobView | None:
        """Take the oldest queued job up, or None. No two callers get the same job."""
        oldest = select(JobRow).where(JobRow.status == "queued").order_by(JobRow.number).limit(1)
        with self.database.write() as session:
            row = session.scalar(oldest.with_for_update(skip_locked=True))
            if row is None:
                return None
            row.attempt += 1
            row.started_at = row.started_at or timestamp()
            _step(row, "running")
            return _view(row)

    def report(self, job_id: str, progress: Progress) -> bool:
        """Write progress down; false when the job is asked to stop."""
        with self.database.write() as session:
            row = _row(session, job_id)
            row.progress = progress.model_dump_json()
            row.version += 1
            return row.status == "running"

    def finish(self, job_id: str, result: dict[str, Any] | None = None, problem: dict[str, Any] | None = None) -> None:
        """End a running job: it succeeded with a result or failed with a problem. With neither, or when it was asked to
        stop before its end, it is canceled. A job that has ended stays as it is."""
        with self.database.write() as session:
            row = _row(session, job_id)
            if row.status not in ACTIVE:
                return
            row.finished_at = timestamp()
            if result is not None:
                row.result = json.dumps(result)
                _step(row, "succeeded")
            elif problem is not None:
                row.error = json.dumps(problem)
                _step(row, "failed")
            else:
                _step(row, "canceled")

    def release(self, job_id: str) -> None:
        """Put a running job back: the worker is leaving, which is no fault of the job."""
        with self.database.write() as session:
            row = _row(session, job_id)
            if row.status == "running":
                row.attempt -= 1
                _step(row, "queued")
            elif row.status == "canceling":
                row.finished_at = timestamp()
                _step(row, "canceled")

    def recover(self) -> None:
        """Deal with the jobs of a worker that died. Only the one who holds the worker's lock may call this."""
        with self.database.write() as session:
            for row in session.scalars(select(JobRow).where(JobRow.status.in_(("running", "canceling")))):
                if row.status == "canceling":
                    row.finished_at = timestamp()
                    _step(row, "canceled")
                elif row.attempt < ATTEMPTS:
                    _step(row, "queued")
                else:
                    row.finished_at = timestamp()
                    detail = f"the worker died {ATTEMPTS} times on this job; try a smaller one, or more memory"
                    row.error = json.dumps(other_problem("worker-lost", detail))
                    _step(row, "failed")

    def cancel(self, job_id: str) -> JobView:
        """Ask a job to stop; one that has ended stays as it is."""
        with self.database.write() as session:
            row = _row(session, job_id)
            if row.status == "queued":
                row.finished_at = timestamp()
                _step(row, "canceled")
            elif row.status == "running":
                _step(row, "canceling")
            return _view(row)

    def get(self, job_id: str) -> JobView:
        with self.database.read() as session:
            return _view(_row(session, job_id))

    def list(self, status: JobStatus | None = None, cursor: str | None = None, limit: int = 50) -> ListView[JobView]:
        """One page of jobs, newest first."""
        query = select(JobRow)
        if status is not None:
            query = query.where(JobRow.status == status)
        with self.database.read() as session:
            rows, following = page(session, JobRow, query, cursor, limit)
            return ListView(items=[_view(row) for row in rows], next_cursor=following)

    def counts(self) -> dict[tuple[str, str], int]:
        """(kind, status) -> how many jobs."""
        query = select(JobRow.kind, JobRow.status, func.count()).group_by(JobRow.kind, JobRow.status)
        with self.database.read() as session:
            return {(kind, status): count for kind, status, count in session.execute(query)}


def _step(row: JobRow, status: JobStatus) -> None:
    row.status = status
    row.version += 1


def _row(session: Session, job_id: str) -> JobRow:
    row = session.scalar(select(JobRow).where(JobRow.id == job_id))
    if row is None:
        raise NotFound(f"no job {job_id!r} is stored; GET /v1/jobs lists those that are")
    return row


def _view(row: JobRow) -> JobView:
    base = f"/v1/jobs/{row.id}"
    return JobView.model_validate(
        {
            "id": row.id,
            "kind": row.kind,
            "status": row.status,
            "created_at": row.created_at,
            "started_at": row.started_at,
            "finished_at": row.finished_at,
            "attempt": row.attempt,
            "version": row.version,
            "progress": None if row.progress is None else Progress.model_validate_json(row.progress),
            "input": json.loads(row.input),
            "result": None if row.result is None else json.loads(row.result),
            "error": None if row.error is None else Problem.model_validate_json(row.error),
            "links": {"self": base, "events": f"{base}/events", "cancel": f"{base}/cancel"},
        }
    )
