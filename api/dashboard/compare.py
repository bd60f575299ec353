"""Two plans side by side: the cells that differ, what that does to bytes and loss, and both on one map each."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from ...allocator.errors import UsageError
from ..cells import unit_facts
from ..compare import compare_plans
from ..depends import StoreDep
from ..layout import bit_map
from .page import page
from .stored import profile_of

router = APIRouter()


@router.get("/compare")
def compare(request: Request, store: StoreDep, plan: Annotated[list[str] | None, Query()] = None) -> HTMLResponse:
    """`?plan=A&plan=B`. Raises UsageError for another number of plans, PlanMismatch for plans of two models."""
    picked = list(dict.fromkeys(plan or ()))
    if len(picked) != 2:
        raise UsageError(f"a comparison takes two plans, and {len(picked)} were picked; pick two in the list of plans")
    plans = [store.plan(plan_id) for plan_id in picked]
    return page(
        request,
        "compare.html",
        section="Plans",
        plans=plans,
        maps=[bit_map(one) for one in plans],
        facts=[unit_facts(one, profile_of(one, store)) for one in plans],
        difference=compare_plans(*plans),
    )
