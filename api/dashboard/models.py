"""Models that were inspected: their units, and what was made of them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from ...allocator import FORMATS
from ..depends import StoreDep
from .page import page

router = APIRouter(prefix="/models")


@router.get("")
def index(request: Request, store: StoreDep) -> HTMLResponse:
    """Models, the one used last first."""
    return page(request, "models.html", section="Models", models=store.models())


@router.get("/{fingerprint}")
def show(fingerprint: str, request: Request, store: StoreDep) -> HTMLResponse:
    """One model's inventory, its profiles and its plans."""
    inventory = store.inventory(fingerprint)
    return page(
        request,
        "model.html",
        section="Models",
        inventory=inventory,
        units=[(unit, unit.stored_bytes(FORMATS[unit.native])) for unit in inventory.units],
        profiles=store.profiles(inventory.model_id).items,
        plans=store.plans(inventory.model_id).items,
    )
