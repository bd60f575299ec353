"""All pages as one router, none of which is part of the described API."""

from __future__ import annotations

from fastapi import APIRouter

from . import about, assets, compare, jobs, models, plan, plan_form, plans, profiles, sweeps

router = APIRouter(include_in_schema=False)
for part in (assets, plans, plan, plan_form, compare, profiles, sweeps, jobs, models, about):
    router.include_router(part.router)
