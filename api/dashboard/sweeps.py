"""Sweeps: many plans asked for in one go, as a grid and as a plot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ..depends import Cursor, JobsDep, StoreDep
from .charts import sweep_charts
from .page import page, with_query

if TYPE_CHECKING:
    from ..schema import SweepCell, SweepView

router = APIRouter(prefix="/sweeps")


@router.get("")
def index(request: Request, store: StoreDep, cursor: Cursor = None) -> HTMLResponse:
    """Sweeps, newest first."""
    found = store.sweeps.list(cursor or None, 50)
    older = found.next_cursor and with_query("/sweeps", {}, cursor=found.next_cursor)
    return page(request, "sweeps.html", section="Sweeps", sweeps=found.items, older=older)


@router.get("/{sweep_id}")
def show(sweep_id: str, request: Request, store: StoreDep, jobs: JobsDep) -> HTMLResponse:
    """One sweep: rows are model, metric and target, columns are budgets."""
    sweep = store.sweeps.get(sweep_id)
    return page(
        request,
        "sweep.html",
        section="Sweeps",
        sweep=sweep,
        job=jobs.get(sweep.job_id),
        rows=grid(sweep),
        charts=sweep_charts(sweep),
    )


def grid(sweep: SweepView) -> dict[tuple[str, str, str], list[SweepCell]]:
    """(model, metric, target) -> a cell for each budget, in the order asked."""
    rows: dict[tuple[str, str, str], list[SweepCell]] = {}
    for cell in sweep.cells:
        rows.setdefault((cell.model, cell.metric, cell.target), []).append(cell)
    return rows
