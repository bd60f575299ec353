"""Sweeps: many plans asked for in one go; one job works on them, cell after cell."""

from __future__ import annotations

import builtins
import hashlib
import json
import secrets
import time
from collections import defaultdict
from itertools import product
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from ...allocator.errors import NotFound, UsageError
from ..schema import ListView, Problem, SweepBody, SweepCell, SweepView
from .database import Database, insert_new, patient
from .paging import Order, page
from .plans import SUMMARY, summary_from
from .tables import CellRow, JobRow, PlanRow, SweepRow, timestamp

MOST_CELLS = 10_000


class Sweeps:
    def __init__(self, database: Database) -> None:
        self.database = database

    @patient
    def create(self, body: SweepBody, job_id: str, owner: str = "") -> SweepView:
        """The sweep that a job works on; made once, whoever asks again. Raises UsageError when it is too large."""
        cells = list(product(body.models, body.metrics, body.targets, body.budgets))
        if len(cells) > MOST_CELLS:
            raise UsageError(f"a sweep of {len(cells)} plans is too large (at most {MOST_CELLS}); split it")
        sweep_id = f"sweep_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(5)}"
        with self.database.write() as session:
            values: dict[str, Any] = {"id": sweep_id, "job_id": job_id, "owner": owner, "created_at": timestamp()}
            values |= {"request": body.model_dump_json(), "content": _content(body)}
            if insert_new(session, SweepRow, **values):
                session.execute(insert(CellRow), [_cell_values(sweep_id, index, cell) for index, cell in enumerate(cells)])
            row = session.scalars(select(SweepRow).where(SweepRow.job_id == job_id)).one()
            return _views(session, [row])[0]

    @patient
    def get(self, sweep_id: str) -> SweepView:
        with self.database.read() as session:
            return _views(session, [_row(session, SweepRow.id == sweep_id, sweep_id)])[0]

    @patient
    def of_job(self, job_id: str) -> SweepView:
        """The sweep that a job works on. Raises NotFound."""
        with self.database.read() as session:
            return _views(session, [_row(session, SweepRow.job_id == job_id, job_id)])[0]

    @patient
    def find(self, body: SweepBody) -> SweepView | None:
        """The newest sweep of this very request whose job is under way or has succeeded."""
        useful = JobRow.status.in_(("queued", "running", "succeeded"))
        query = select(SweepRow).join(JobRow, JobRow.id == SweepRow.job_id).where(SweepRow.content == _content(body), useful)
        with self.database.read() as session:
            row = session.scalar(query.order_by(SweepRow.number.desc()).limit(1))
            return None if row is None else _views(session, [row])[0]

    @patient
    def list(self, cursor: str | None = None, limit: int = 50) -> ListView[SweepView]:
        """One page of sweeps, newest first."""
        with self.database.read() as session:
            rows, following = page(session, select(SweepRow), Order.newest(SweepRow.number), cursor, limit)
            return ListView(items=_views(session, [row[0] for row in rows]), next_cursor=following)

    @patient
    def start(self, sweep_id: str, index: int) -> None:
        """The job works on a cell now; one that has ended stays as it is."""
        with self.database.write() as session:
            cell = CellRow.sweep_id == sweep_id, CellRow.position == index, CellRow.status == "queued"
            session.execute(update(CellRow).where(*cell).values(status="running"))

    @patient
    def settle(self, sweep_id: str, index: int, plan_id: str | None = None, problem: dict[str, Any] | None = None) -> None:
        """A cell has ended, with a plan or with a problem. Settling again replaces what was there."""
        if (plan_id is None) == (problem is None):
            raise ValueError("a cell ends with either a plan or a problem")
        with self.database.write() as session:
            status, error = ("succeeded", None) if problem is None else ("failed", json.dumps(problem))
            done = session.execute(
                update(CellRow)
                .where(CellRow.sweep_id == sweep_id, CellRow.position == index)
                .values(status=status, plan_id=plan_id, error=error)
            )
            if not done.rowcount:  # type: ignore[attr-defined]
                raise NotFound(f"sweep {sweep_id!r} has no cell {index}")


def _content(body: SweepBody) -> str:
    return hashlib.sha256(body.model_dump_json().encode()).hexdigest()


def _cell_values(sweep_id: str, index: int, cell: tuple[str, str, str, str]) -> dict[str, Any]:
    model, metric, target, budget = cell
    return {
        "sweep_id": sweep_id,
        "position": index,
        "model": model,
        "metric": metric,
        "target": target,
        "budget": budget,
        "status": "queued",
    }


def _row(session: Session, wanted: Any, name: str) -> SweepRow:
    row = session.scalar(select(SweepRow).where(wanted))
    if row is None:
        raise NotFound(f"no sweep {name!r} is stored; GET /v1/sweeps lists those that are")
    return row


def _views(session: Session, rows: builtins.list[SweepRow]) -> builtins.list[SweepView]:
    """All in two queries, however many sweeps and cells."""
    ids = [row.id for row in rows]
    states = select(JobRow.id, JobRow.status).where(JobRow.id.in_([row.job_id for row in rows]))
    status = {row.id: row.status for row in session.execute(states)}
    cells: dict[str, list[SweepCell]] = defaultdict(list)
    query = (
        select(CellRow, *SUMMARY)
        .outerjoin(PlanRow, PlanRow.id == CellRow.plan_id)
        .where(CellRow.sweep_id.in_(ids))
        .order_by(CellRow.sweep_id, CellRow.position)
    )
    for cell, summary, verified, measured_loss in session.execute(query):
        cells[cell.sweep_id].append(
            SweepCell.model_validate(
                {
                    "index": cell.position,
                    "model": cell.model,
                    "metric": cell.metric,
                    "target": cell.target,
                    "budget": cell.budget,
                    "status": cell.status,
                    "plan": None if summary is None else summary_from(summary, verified, measured_loss),
                    "error": None if cell.error is None else Problem.model_validate_json(cell.error),
                }
            )
        )
    return [
        SweepView.model_validate(
            {
                "id": row.id,
                "job_id": row.job_id,
                "owner": row.owner,
                "created_at": row.created_at,
                "status": status.get(row.job_id, "queued"),
                "request": SweepBody.model_validate_json(row.request),
                "cells": cells[row.id],
                "links": {"self": f"/v1/sweeps/{row.id}", "job": f"/v1/jobs/{row.job_id}"},
            }
        )
        for row in rows
    ]
