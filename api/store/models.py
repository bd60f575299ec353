"""Models that were inspected, with what was made of them."""

from __future__ import annotations

import json
from math import prod
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..schema import ModelView
from .tables import InventoryRow, PlanRow, ProfileRow

if TYPE_CHECKING:
    from ...allocator import Inventory


def inventory_summary(inventory: Inventory) -> dict[str, Any]:
    """What a list shows of an inventory; parameters of untouched tensors are counted."""
    return {
        "architecture": inventory.architecture,
        "units": len(inventory.units),
        "parameters": inventory.unit_parameters + sum(prod(tensor.shape) for tensor in inventory.fixed),
    }


def list_models(session: Session) -> list[ModelView]:
    """One view a model name, with its newest inventory; the one used last first."""
    plans = _uses(session, PlanRow)
    profiles = _uses(session, ProfileRow)
    columns = (InventoryRow.model, InventoryRow.fingerprint, InventoryRow.summary, InventoryRow.created_at)
    newest = {row.model: row for row in session.execute(select(*columns).order_by(InventoryRow.number))}
    never = (0, "")
    views = [
        ModelView(
            model=model,
            fingerprint=row.fingerprint,
            plans=plans.get(model, never)[0],
            profiles=profiles.get(model, never)[0],
            created_at=row.created_at,
            last_used_at=max(row.created_at, plans.get(model, never)[1], profiles.get(model, never)[1]),
            **json.loads(row.summary),
        )
        for model, row in newest.items()
    ]
    return sorted(views, key=lambda view: view.last_used_at, reverse=True)


def _uses(session: Session, rows: type[PlanRow] | type[ProfileRow]) -> dict[str, tuple[int, str]]:
    """model -> how many rows, and when the newest came. Counted in the index on models; only the newest rows are read."""
    counted = (
        select(rows.model, func.count().label("rows"), func.max(rows.number).label("newest")).group_by(rows.model).subquery()
    )
    query = select(counted.c.model, counted.c.rows, rows.created_at).join(rows, rows.number == counted.c.newest)
    return {model: (count, moment) for model, count, moment in session.execute(query)}
