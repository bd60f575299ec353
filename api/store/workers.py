"""Workers: the processes that do jobs, and their beats.

A beat is a counter, not a time: whoever wants to know whether a worker lives watches the counter by a clock of its own,
so that no clock that jumps can kill a worker.
"""

from __future__ import annotations

import builtins

from sqlalchemy import delete, select

from ..schema import WorkerView
from .database import Database, patient
from .tables import WorkerRow, timestamp


class Workers:
    def __init__(self, database: Database) -> None:
        self.database = database

    @patient
    def beat(self, worker: WorkerView) -> None:
        """Write the worker's row down as it is now; the first beat makes it."""
        with self.database.write() as session:
            session.merge(WorkerRow(**worker.model_dump(), seen_at=timestamp()))

    @patient
    def list(self) -> builtins.list[WorkerView]:
        """All workers that were not removed, whether they live or not, by id."""
        with self.database.read() as session:
            return [WorkerView.model_validate(_values(row)) for row in session.scalars(select(WorkerRow).order_by(WorkerRow.id))]

    @patient
    def remove(self, worker_id: str) -> None:
        """Forget a worker; one that is not there is forgotten already."""
        with self.database.write() as session:
            session.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))


def _values(row: WorkerRow) -> dict[str, object]:
    return {name: getattr(row, name) for name in WorkerView.model_fields}
