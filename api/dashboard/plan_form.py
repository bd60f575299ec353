"""Asking for a plan in a form: the same request as a POST to /v1/plans, answered with a page to look at."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse

from ...allocator import METRIC_SUMMARIES, SOLVERS, TARGETS
from ...allocator.errors import BitplanError
from ..depends import StoreDep
from .asking import Ask
from .forms import Form
from .page import page, see_other

router = APIRouter()


@router.get("/new")
def form(request: Request, store: StoreDep, model: str = "") -> HTMLResponse:
    """An empty form."""
    return _page(request, store, {"model": model})


@router.post("/new", response_model=None)
async def make(request: Request, given: Form, store: StoreDep, ask: Ask) -> HTMLResponse | RedirectResponse:
    """The plan's page, or the job's; the form again with the reason where it cannot be."""
    said = {name: value for name, value in given.items() if value and name in ("model", "budget", "target", "metric", "solver")}
    try:
        return see_other(await ask("/v1/plans", {**said, "verify": "verify" in given}))
    except BitplanError as error:
        return await run_in_threadpool(_page, request, store, said, str(error), 422)


def _page(request: Request, store: StoreDep, said: dict[str, str], refused: str = "", status: int = 200) -> HTMLResponse:
    return page(
        request,
        "new.html",
        section="Plans",
        status=status,
        said=said,
        refused=refused,
        models=[view.model for view in store.models()],
        targets=list(TARGETS),
        metrics=METRIC_SUMMARIES,
        solvers=list(SOLVERS),
    )
