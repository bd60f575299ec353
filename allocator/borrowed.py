"""A profile borrowed from a smaller sibling: losses, and so a plan, before anything of the model itself is measured."""

from __future__ import annotations

import json
import time
from pathlib import Path

from ..sensitivity.report import SensitivityReport
from ..sensitivity.sibling import from_sibling
from ..sensitivity.units import Inventory
from .errors import NotFound, UsageError
from .home import read_json, write_whole
from .request import ProfileRequest


def borrow_profile(request: ProfileRequest, inventory: Inventory, home: Path) -> SensitivityReport:
    """The report of `request.sibling`, a stored profile by its id or the beginning of it, carried over to `inventory`; kept.

    Raises NotFound when there is no such profile, UsageError when it does not fit the model.
    """
    from .solve import versions

    started = time.perf_counter()
    report, sibling = _stored(str(request.sibling), home)
    formats = request.palette(inventory)
    try:
        estimate = from_sibling(inventory, formats, report, sibling)
    except ValueError as error:
        raise UsageError(str(error)) from error
    borrowed = SensitivityReport(
        id=request.profile_id(inventory),
        metric=request.metric,
        quantity=estimate.quantity,
        settings={**report.settings, "sibling": report.id, "sibling_model": sibling.model_id},
        units=tuple(unit.name for unit in inventory.units),
        formats=formats,
        loss=estimate.loss,
        stderr=None,
        batches=0,
        inventory_fingerprint=inventory.fingerprint,
        render_fingerprint="",
        data_fingerprint="",
        seed=request.seed,
        seconds=time.perf_counter() - started,
        versions=versions(),
        notes=estimate.notes,
    )
    write_whole(home / "profiles" / f"{borrowed.id}.json", json.dumps(borrowed.to_json()).encode())
    return borrowed


def _stored(beginning: str, home: Path) -> tuple[SensitivityReport, Inventory]:
    found = sorted((home / "profiles").glob(f"{beginning}*.json")) if beginning.isalnum() else []
    if len(found) != 1:
        many = "several profiles begin" if found else "no stored profile begins"
        raise NotFound(f"{many} with {beginning!r}; `bitplan profile MODEL` names the profile it makes")
    report = SensitivityReport.from_json(json.loads(found[0].read_bytes()))
    for path in sorted((home / "inventories").glob("*.json")):
        document = read_json(path)
        if document is not None and document["inventory"]["fingerprint"] == report.inventory_fingerprint:
            return report, Inventory.from_json(document["inventory"])
    raise NotFound(f"the inventory of profile {report.id[:12]} is gone; run `bitplan inspect` on its model")
