"""How long jobs waited and took, summed up by kind."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from .database import Database
from .tables import JobRow


@dataclass
class Times:
    """Seconds of all jobs of a kind: `started` of them waited `waited`, `finished` of those took `worked`."""

    started: int = 0
    waited: float = 0.0
    finished: int = 0
    worked: float = 0.0


def job_seconds(database: Database) -> dict[str, Times]:
    """Of every kind of which a job was started."""
    times: dict[str, Times] = {}
    columns = (JobRow.kind, JobRow.created_at, JobRow.started_at, JobRow.finished_at)
    with database.read() as session:
        rows = session.execute(select(*columns).where(JobRow.started_at.is_not(None))).all()
    for kind, created, started, finished in rows:
        assert started is not None
        of_kind = times.setdefault(kind, Times())
        of_kind.started += 1
        of_kind.waited += _between(created, started)
        if finished is not None:
            of_kind.finished += 1
            of_kind.worked += _between(started, finished)
    return times


def _between(first: str, second: str) -> float:
    """Never negative, though clocks jump."""
    return max(0.0, (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds())
