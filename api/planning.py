"""Planning inside the service's own process: from what is stored, in milliseconds, without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .schema import PlanBody, ProfileBody
from .settings import Settings, check_calibration
from .store import Store

if TYPE_CHECKING:
    from ..allocator import Plan


def check_body(body: ProfileBody) -> None:
    """Refuse what can be refused before anything is known of the model: unknown names, files outside the roots."""
    if body.calibration is not None:
        check_calibration(body.calibration)
    if isinstance(body, PlanBody):
        body.plan_request().check()
    else:
        body.profile_request().check()


def ready_plan(body: PlanBody, store: Store, settings: Settings) -> Plan | None:
    """The plan, when the model was inspected and profiled before; None when that is still to be done.

    Raises Infeasible as soon as the inventory alone shows it."""
    from .. import allocator
    from ..allocator.solve import needs_profile

    inventory = allocator.known_inventory(body.model, settings.home)
    if inventory is None:
        return None
    request = body.plan_request()
    allocator.check_budget(inventory, request)
    needed = needs_profile(inventory, request)
    report = allocator.known_profile(request.measured, settings.home) if needed else None
    if needed and report is None:
        return None
    store.put_inventory(inventory)
    if report is not None:
        store.put_profile(report, body.profile())
    return allocator.plan_from_profile(inventory, report, request)


def unlimited_plan(profile_id: str, target: str, store: Store) -> Plan:
    """The plan of a stored profile that a budget of the model's own size gets: its certificate holds the target's whole
    tables, and so its frontier is that of every budget."""
    from .. import allocator

    report, body = store.profile(profile_id)
    inventory = store.inventory(report.inventory_fingerprint)
    request = allocator.PlanRequest(body.profile_request(), "100%", target)
    return allocator.plan_from_profile(inventory, report, request)


def summary_of(thing: Any) -> str:
    """What a list of names says of a thing: its `summary`, or else the first line of its docstring."""
    text = thing if isinstance(thing, str) else getattr(thing, "summary", None) or thing.__doc__ or ""
    return str(text).strip().partition("\n")[0]
