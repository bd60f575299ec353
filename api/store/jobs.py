"""JobRows: the jobs as users see them, and every step that a job's state may take. When a job runs is the engine's to decide.

    queued ──begin──> running ──finish──> succeeded | failed
      │                 └──cancel──> canceling ──finish──> canceled
      └──cancel──> canceled

Each step is one transaction, so that a process killed at any moment leaves every job in one of these states. The last
three never change again. Two requests for the same work are one job as long as that job is not finished.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import secrets
import time
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ...allocator.errors import NotFound
from ..schema import ACTIVE, JobKind, JobStatus, JobView, ListView, Problem, Progress
from .database import Database, insert_new, patient
from .paging import Order, page
from .tables import JobRow, timestamp


class JobRows:
    def __init__(self, database: Database) -> None:
        self.database = database

    @patient
    def submit(self, kind: JobKind, document: dict[str, Any], owner: str = "", parent: str | None = None) -> JobView:
        """Ask for work: a new job, or the unfinished one that does the same, whoever asked for that."""
        text = json.dumps(document, sort_keys=True)
        content = hashlib.sha256(f"{kind} {text}".encode()).hexdigest()
        same = select(JobRow).where(JobRow.content == content, JobRow.status.in_(("queued", "running")))
        job_id = f"job_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(5)}"
        while True:
            with self.database.write() as session:
                new = insert_new(
                    session,
                    JobRow,
                    id=job_id,
                    kind=kind,
                    content=content,
                    status="queued",
                    owner=owner,
                    parent=parent,
                    input=text,
                    attempt=0,
                    version=1,
                    created_at=timestamp(),
                )
                row = session.scalar(select(JobRow).where(JobRow.id == job_id) if new else same)
                if row is not None:  # None: it ended between the two statements, and the next round makes a new one
                    return _view(row)

    @patient
    def begin(self, job_id: str) -> JobView:
        """A worker takes the job up, for the first time or again. One that was asked to stop, or that has ended, stays as
        it is: look at the status."""
        with self.database.write() as session:
            row = _row(session, job_id, locked=True)
            if row.status in ("queued", "running"):
                row.attempt += 1
                row.started_at = row.started_at or timestamp()
                _step(row, "running")
            return _view(row)

    @patient
    def active(self, *statuses: JobStatus) -> builtins.list[JobView]:
        """All jobs that have not ended, oldest first, or those of them in one of `statuses`."""
        query = select(JobRow).where(JobRow.status.in_(statuses or ACTIVE)).order_by(JobRow.number)
        with self.database.read() as session:
            return [_view(row) for row in session.scalars(query)]

    @patient
    def report(self, job_id: str, progress: Progress) -> bool:
        """Write progress down; false when the job is asked to stop."""
        with self.database.write() as session:
            row = _row(session, job_id, locked=True)
            row.progress = progress.model_dump_json()
            row.version += 1
            return row.status == "running"

    @patient
    def finish(self, job_id: str, result: dict[str, Any] | None = None, problem: dict[str, Any] | None = None) -> None:
        """End a running job: it succeeded with a result or failed with a problem. With neither, or when it was asked to
        stop before its end, it is canceled. A job that has ended stays as it is."""
        with self.database.write() as session:
            row = _row(session, job_id, locked=True)
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

    @patient
    def cancel(self, job_id: str) -> JobView:
        """Ask a job to stop; one that has ended stays as it is."""
        with self.database.write() as session:
            row = _row(session, job_id, locked=True)
            if row.status == "queued":
                row.finished_at = timestamp()
                _step(row, "canceled")
            elif row.status == "running":
                _step(row, "canceling")
            return _view(row)

    @patient
    def get(self, job_id: str) -> JobView:
        with self.database.read() as session:
            return _view(_row(session, job_id))

    @patient
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
        asked = {JobRow.status: status, JobRow.kind: kind, JobRow.owner: owner, JobRow.parent: parent}
        query = select(JobRow).where(*(column == value for column, value in asked.items() if value is not None))
        with self.database.read() as session:
            rows, following = page(session, query, Order.newest(JobRow.number), cursor, limit)
            return ListView(items=[_view(row[0]) for row in rows], next_cursor=following)

    @patient
    def counts(self) -> dict[tuple[str, str], int]:
        """(kind, status) -> how many jobs."""
        query = select(JobRow.kind, JobRow.status, func.count()).group_by(JobRow.kind, JobRow.status)
        with self.database.read() as session:
            return {(kind, status): count for kind, status, count in session.execute(query)}


def _step(row: JobRow, status: JobStatus) -> None:
    row.status = status
    row.version += 1


def _row(session: Session, job_id: str, locked: bool = False) -> JobRow:
    query = select(JobRow).where(JobRow.id == job_id)
    row = session.scalar(query.with_for_update() if locked else query)
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
            "owner": row.owner,
            "parent": row.parent,
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
