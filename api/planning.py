"""Planning inside the service's own process: from what is stored, in milliseconds, without torch.

The store is the truth: inventories and profiles may have been made by workers on other machines. What this machine's own
home holds beside it (a profile made from Python, say) is taken over into the store when it is asked for. Neither changes
once it is there, so the planner keeps what it has read, and everything of a problem that no budget changes.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ..allocator.errors import NotFound
from .kept import Kept
from .schema import PlanBody, ProfileBody
from .settings import Settings, check_calibration, check_model
from .store import Store

if TYPE_CHECKING:
    from ..allocator import Inventory, Plan, PlanRequest, ProfileRequest, SensitivityReport
    from ..allocator.document import PlanDocument, PlanWriter

Profile: TypeAlias = "tuple[SensitivityReport, ProfileBody]"
KEPT_ENTRIES = 64
KEPT_UNITS = 200_000  # of all that is kept of one kind; see `benchmarks/load.py` for what that is in bytes
KEPT_KEYS = 10_000
PAGE = 200


def check_body(body: ProfileBody, settings: Settings) -> None:
    """Refuse what can be refused before anything is known of the model: unknown names, files outside the roots."""
    check_model(body.model, settings)
    if body.calibration is not None:
        check_calibration(body.calibration, settings)
    if isinstance(body, PlanBody):
        body.plan_request().check()
    else:
        body.profile_request().check()


class Planner:
    """Plans for the routes. Safe from several threads."""

    def __init__(self, store: Store, home: Path) -> None:
        self._store, self._home = store, home
        self._keys: Kept[str, str] = Kept(KEPT_KEYS, KEPT_KEYS, lambda _: 1)
        self._inventories: Kept[tuple[str, str], Inventory] = Kept(KEPT_ENTRIES, KEPT_UNITS, lambda kept: len(kept.units))
        self._profiles: Kept[str, Profile] = Kept(KEPT_ENTRIES, KEPT_UNITS, lambda kept: len(kept[0].units))
        self._writers: Kept[tuple[Any, ...], PlanWriter] = Kept(KEPT_ENTRIES, KEPT_UNITS, lambda kept: kept.units)

    def ready(self, body: PlanBody) -> PlanDocument | None:
        """The plan for a checked body, when the model was inspected and profiled before; None when that is still to be done.

        Raises Infeasible as soon as the inventory alone shows it, ModelError."""
        inventory = self.inventory(body.model)
        if inventory is None:
            return None
        request = body.plan_request()
        sizes = self._writer(inventory, None, request)
        if not sizes.needs_profile(request):
            return sizes.write(request)
        report = self.report(request.measured, inventory, body.profile())
        return None if report is None else self._writer(inventory, report, request).write(request)

    def preview(self, profile_id: str, budget: str, target: str, solver: str) -> PlanDocument:
        """The plan that a POST of the profile's own settings with this budget, target and solver returns; nothing is stored.

        Raises NotFound, UnknownName, UsageError, Infeasible."""
        inventory, report, request = self._asked(profile_id, budget, target, solver)
        sizes = self._writer(inventory, None, request)
        return (self._writer(inventory, report, request) if sizes.needs_profile(request) else sizes).write(request)

    def unlimited(self, profile_id: str, target: str) -> Plan:
        """The plan of a stored profile that a budget of the model's own size gets: its certificate holds the target's whole
        tables, and so its frontier is that of every budget."""
        inventory, report, request = self._asked(profile_id, "100%", target, "best")
        return self._writer(inventory, report, request).plan(request)

    def inventory(self, model: str) -> Inventory | None:
        """The inventory of the files that `model` names now, or, where those are on other machines only, of what was inspected
        there last; None when there is none yet. Raises ModelError."""
        from .. import allocator

        key = allocator.source_key(model, self._keys.find(model))
        if key is None:
            fingerprint = next((view.fingerprint for view in self._store.models() if view.model == model), None)
            return None if fingerprint is None else self._inventory_of(model, fingerprint)
        self._keys.put(model, key)
        known = self._inventories.find((model, key))
        if known is None:
            known = allocator.known_inventory(model, self._home)
            if known is not None:
                self._store.put_inventory(known)
                self._inventories.put((model, key), known)
        return known

    def report(self, request: ProfileRequest, inventory: Inventory, body: ProfileBody) -> SensitivityReport | None:
        """What was measured for `request`, over its very palette or a wider one; None when nothing was. `body` says the same."""
        from .. import allocator

        identity = request.profile_id(inventory)
        kept = self._profiles.find(identity)
        if kept is None:
            kept = self._stored_profile(request, inventory, identity)
            if kept is None:
                measured = allocator.known_profile(request, self._home)
                if measured is None:
                    return None
                self._store.put_profile(measured, body)
                kept = measured, body.model_copy(update={"formats": measured.formats})
            self._profiles.put(identity, kept)
        return kept[0]

    def _stored_profile(self, request: ProfileRequest, inventory: Inventory, identity: str) -> Profile | None:
        with suppress(NotFound):
            return self._store.profile(identity)
        wanted, cursor = set(request.palette(inventory)), None
        while True:
            page = self._store.profiles(request.model, cursor, PAGE)
            for summary in page.items:
                if wanted <= set(summary.formats):
                    wider = replace(request, formats=tuple(summary.formats))
                    if wider.profile_id(inventory) == summary.id:
                        return self._store.profile(summary.id)
            cursor = page.next_cursor
            if cursor is None:
                return None

    def _asked(self, profile_id: str, budget: str, target: str, solver: str) -> tuple[Inventory, SensitivityReport, PlanRequest]:
        """A plan of a stored profile as a checked request."""
        from ..allocator import PlanRequest

        kept = self._profiles.find(profile_id)
        if kept is None:
            kept = self._store.profile(profile_id)
            self._profiles.put(kept[0].id, kept)
        report, body = kept
        request = PlanRequest(body.profile_request(), budget, target, solver)
        request.check()
        return self._inventory_of(body.model, report.inventory_fingerprint), report, request

    def _inventory_of(self, model: str, fingerprint: str) -> Inventory:
        key = model, f"fingerprint {fingerprint}"
        return self._inventories.get(key, lambda: replace(self._store.inventory(fingerprint), model_id=model))

    def _writer(self, inventory: Inventory, report: SensitivityReport | None, request: PlanRequest) -> PlanWriter:
        """What writes the plans of `request` under any limits."""
        from ..allocator.document import PlanWriter
        from ..allocator.groundwork import lay_groundwork

        formats = request.measured.palette(inventory)
        device = None if request.latency_ms is None else request.timed_on
        profile_id = None if report is None else report.id
        key = (inventory.model_id, inventory.fingerprint, profile_id, request.target, formats, request.pins, device)
        return self._writers.get(key, lambda: PlanWriter(lay_groundwork(inventory, report, request)))


def unlimited_plan(profile_id: str, target: str, store: Store) -> Plan:
    """`Planner.unlimited`, for once."""
    return Planner(store, Path()).unlimited(profile_id, target)


def summary_of(thing: Any) -> str:
    """What a list of names says of a thing: its `summary`, or else the first line of its docstring."""
    text = thing if isinstance(thing, str) else getattr(thing, "summary", None) or thing.__doc__ or ""
    return str(text).strip().partition("\n")[0]
