"""What jobs are made of, and what the command line does at once: ask the allocator, and keep in the store what it hands back.

Each part is kept as soon as it exists, so that work taken up again after a crash finds its finished parts done.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...allocator.errors import NotFound
from ..schema import InspectBody, PlanBody, ProfileBody
from ..store import Store
from .progress import Tell

if TYPE_CHECKING:
    from ...allocator import ExecutionReport, Inventory, Plan, SensitivityReport

__all__ = ["Tell"]


def inspect_model(store: Store, home: Path, body: InspectBody, tell: Tell) -> Inventory:
    """The model's inventory, stored."""
    from ... import allocator

    inventory = allocator.inspect_model(body.model, home=home, progress=tell, stream=body.stream)
    store.put_inventory(inventory)
    return inventory


def profile_model(store: Store, home: Path, body: ProfileBody, tell: Tell) -> SensitivityReport:
    """The model's sensitivity report, stored."""
    from ... import allocator

    check_profile(body)
    inspect_model(store, home, InspectBody(model=body.model, stream=body.stream), tell)
    report = allocator.profile_model(body.profile_request(), home=home, progress=tell)
    store.put_profile(report, body)
    return report


def make_plan(store: Store, home: Path, body: PlanBody, tell: Tell) -> Plan:
    """The plan, stored; measured too when the body asks for that and it never was."""
    from ... import allocator

    plan = allocator.allocate(
        body.model,
        body.budget,
        target=body.target,
        metric=body.metric,
        solver=body.solver,
        formats=body.formats,
        pins=body.pins,
        calibration=body.calibration,
        tokens=body.tokens,
        seed=body.seed,
        rounding=body.rounding,
        until_stable=body.until_stable,
        stream=body.stream,
        sibling=body.sibling,
        device=body.device,
        latency_ms=body.latency_ms,
        latency_device=body.latency_device,
        home=home,
        progress=tell,
    )
    keep_sources(store, home, body)
    store.put_plan(plan)
    if body.verify and store.plan(plan.id).evidence is None:
        verify_plan(store, home, plan, tell, device=body.device)
    return store.plan(plan.id)


def keep_sources(store: Store, home: Path, body: PlanBody) -> None:
    """Store the inventory and the profile that a plan was made from."""
    from ... import allocator

    inventory = allocator.known_inventory(body.model, home)
    report = allocator.known_profile(body.plan_request().measured, home)
    if inventory is not None:
        store.put_inventory(inventory)
    if report is not None:
        store.put_profile(report, body.profile())


def check_profile(body: ProfileBody) -> None:
    """Raises UsageError, UnknownName for what nobody can measure here."""
    request = body.profile_request()
    request.check()
    request.check_device()


def verify_plan(
    store: Store, home: Path, plan: Plan, tell: Tell, data: str | None = None, device: str = "auto"
) -> ExecutionReport:
    """Measure a plan and attach what was measured to it, stored."""
    from ... import allocator

    report = allocator.verify(plan, data=data, device=device, home=home, progress=tell)
    store.put_plan(plan.model_copy(update={"evidence": report.to_json()}))
    return report


def execute_plan(plan: Plan, home: Path, folder: str, tell: Tell) -> None:
    """The quantized model in a folder below the home, which appears whole; one that is there is right already."""
    from ... import allocator

    if not (home / folder).exists():
        (home / folder).parent.mkdir(parents=True, exist_ok=True)
        allocator.execute(plan, home / folder, home=home, progress=tell)


def known_inventory(store: Store, home: Path, model: str) -> str | None:
    """The fingerprint of a model that was inspected before, its inventory stored. Raises ModelError."""
    from ... import allocator

    inventory = allocator.known_inventory(model, home)
    if inventory is not None:
        store.put_inventory(inventory)
    return None if inventory is None else inventory.fingerprint


def known_profile(store: Store, home: Path, body: PlanBody, fingerprint: str) -> dict[str, Any]:
    """{"known": true, "profile": its id, or None where the plan needs none}, or {"known": false, "measure": what to measure}.

    Raises Infeasible and the like as soon as the inventory alone shows it."""
    from ... import allocator
    from ...allocator.solve import needs_profile

    inventory, request = _inventory(store, body, fingerprint), body.plan_request()
    if not needs_profile(inventory, request):
        return {"known": True, "profile": None}
    stored = stored_profile(store, request.measured.profile_id(inventory))
    if stored is not None:
        return {"known": True, "profile": stored}
    measure = body.profile().model_copy(update={"formats": request.measured.formats})
    report = allocator.known_profile(request.measured, home)
    if report is None:
        return {"known": False, "measure": measure.model_dump(mode="json")}
    store.put_profile(report, measure)
    return {"known": True, "profile": report.id}


def stored_profile(store: Store, profile_id: str) -> str | None:
    """The id, when a profile of that id is stored."""
    try:
        return store.profile(profile_id)[0].id
    except NotFound:
        return None


def plan_from_stored(store: Store, body: PlanBody, fingerprint: str, profile_id: str | None) -> str:
    """Make the plan from what is stored, store it, and give its id. Raises Infeasible, UsageError."""
    from ... import allocator

    report = None if profile_id is None else store.profile(profile_id)[0]
    plan = allocator.plan_from_profile(_inventory(store, body, fingerprint), report, body.plan_request())
    store.put_plan(plan)
    return plan.id


def renderings_of(plan: Plan) -> list[str]:
    """The files of rounded weights that a plan consists of, below the home."""
    folder = f"renderings/{plan.provenance.render_fingerprint[:32]}"
    return [f"{folder}/{unit}@{fmt}.safetensors" for unit, fmt in plan.assignment.items()]


def _inventory(store: Store, body: PlanBody, fingerprint: str) -> Inventory:
    """As stored, under the name that was asked for."""
    return replace(store.inventory(fingerprint), model_id=body.model)
