"""The list of stored plans: filtered, sorted, in pages; two of them can be picked to be compared."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ...allocator import METRIC_SUMMARIES, TARGETS
from ..depends import Cursor, JobsDep, StoreDep
from .page import page, with_query

router = APIRouter()
VERIFIED = {"": None, "passed": True, "failed": False}
SORTS = {  # column of the table -> (heading, how it is sorted at the first click)
    "created_at": ("Made", "-created_at"),
    "bytes": ("Size", "bytes"),
    "loss": ("Loss", "loss"),
    "stored_bits_per_weight": ("Bits a weight", "stored_bits_per_weight"),
}
PAGE = 50


@router.get("/")
def plans(
    request: Request,
    store: StoreDep,
    jobs: JobsDep,
    model: str = "",
    target: str = "",
    metric: str = "",
    budget: str = "",
    verified: Literal["", "passed", "failed"] = "",
    sort: str = "-created_at",
    cursor: Cursor = None,
) -> HTMLResponse:
    """Stored plans, and what is being worked on."""
    asked = {"model": model, "target": target, "metric": metric, "budget": budget, "verified": verified}
    wanted = {name: value or None for name, value in asked.items() if name != "verified"}
    found = store.plans(**wanted, verified=VERIFIED[verified], sort=sort, cursor=cursor or None, limit=PAGE)
    unfinished = [job for status in ("running", "canceling", "queued") for job in jobs.list(status=status, limit=5).items]
    return page(
        request,
        "plans.html",
        section="Plans",
        plans=found.items,
        asked=asked,
        filtered=any(asked.values()),
        sort=sort,
        headings={name: _heading(name, sort, asked) for name in SORTS},
        older=found.next_cursor and with_query("/", {**asked, "sort": sort}, cursor=found.next_cursor),
        newest=cursor and with_query("/", asked, sort=sort),
        models=[view.model for view in store.models()],
        targets=list(TARGETS),
        metrics=list(METRIC_SUMMARIES),
        jobs=unfinished[:5],
    )


def _heading(name: str, sort: str, asked: dict[str, str]) -> dict[str, str]:
    """What a column's heading says and where it leads: a second click turns the order round."""
    text, first = SORTS[name]
    sorted_by = sort.removeprefix("-") == name
    following = first if not sorted_by else name if sort.startswith("-") else f"-{name}"
    order = ("descending" if sort.startswith("-") else "ascending") if sorted_by else ""
    return {"text": text, "href": with_query("/", asked, sort=following), "order": order}
