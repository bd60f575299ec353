"""Profiles: a model inspected and measured once, and found again by content.

Nothing is measured twice. An inventory is kept under the state of the model's files, a report under the hash of everything
its numbers follow from; a report over more formats serves a request for fewer. The `known_` functions only look, import
no torch, and are what a server asks.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..sensitivity import METRICS
from ..sensitivity.progress import Progress, silent
from ..sensitivity.report import SensitivityReport
from ..sensitivity.units import Inventory
from .borrowed import borrow_profile
from .errors import ModelError, UsageError
from .home import home_folder, read_json, report_path, write_whole
from .prepared import prepare
from .request import PlanRequest, ProfileRequest
from .source import Source, larger_than, resolve, resolve_here

if TYPE_CHECKING:
    import torch

    from .hollow import Hollow
    from .models import Loaded
    from .profile_work import ProfileWork

INVENTORY_VERSION = 2  # 2: a mixture says how many experts a token is sent to


def known_inventory(model: str, home: Path | str | None = None) -> Inventory | None:
    """The stored inventory of `model`, if these very files were inspected before. Raises ModelError for an unusable id."""
    source = resolve_here(model)
    return None if source is None else _stored_inventory(source, home_folder(home))


def inspect_model(model: str, *, home: Path | str | None = None, progress: Progress = silent, stream: bool = False) -> Inventory:
    """The inventory of `model`, read from its weights the first time; with `stream`, one tensor at a time. Raises ModelError."""
    folder, source = home_folder(home), resolve(model)
    known = _stored_inventory(source, folder)
    return known if known is not None else _open(source, folder, stream, progress)[0].network.inventory


def load_model(source: Source, home: Path, progress: Progress = silent, device: torch.device | None = None) -> Loaded:
    """Load a model to `device` (None: the CPU) and keep its inventory. Raises ModelError."""
    from ..sensitivity.network import moved
    from .models import load

    loaded = load(source, home, progress)
    _keep_inventory(source, loaded.network.inventory, home)
    return loaded if device is None else replace(loaded, network=moved(loaded.network, device))


def known_profile(request: ProfileRequest, home: Path | str | None = None) -> SensitivityReport | None:
    """The stored report that answers `request`, if there is one; it may cover more formats than asked."""
    folder = home_folder(home)
    inventory = known_inventory(request.model, folder)
    return None if inventory is None else stored_report(request, inventory, folder)


def stored_report(request: ProfileRequest, inventory: Inventory, home: Path) -> SensitivityReport | None:
    """The report of exactly this request, or of the same request with more formats."""
    document = read_json(report_path(home, request.profile_id(inventory)))
    if document is not None:
        return SensitivityReport.from_json(document)
    wanted = set(request.palette(inventory))
    for path in sorted((home / "profiles").glob("*.json")):
        other = read_json(path)
        if other is None or other["inventory_fingerprint"] != inventory.fingerprint or not wanted <= set(other["formats"]):
            continue
        wider = replace(request, formats=tuple(other["formats"]))
        if wider.profile_id(inventory) == other["id"]:
            return SensitivityReport.from_json(other)
    return None


def profile_model(request: ProfileRequest, *, home: Path | str | None = None, progress: Progress = silent) -> SensitivityReport:
    """Measure `request`, or find it measured. Interrupted, it goes on later from the last finished step.

    Raises UsageError, UnknownName, ModelError.
    """
    found = open_profile(request, home=home, progress=progress)
    return found if isinstance(found, SensitivityReport) else found.complete(progress)


def open_profile(
    request: ProfileRequest, *, home: Path | str | None = None, progress: Progress = silent
) -> SensitivityReport | ProfileWork:
    """The report of `request` where it is known or follows from another, or else the work that leads to it, opened.

    Raises UsageError, UnknownName, ModelError.
    """
    request.check()
    request.check_device()
    folder, source = home_folder(home), resolve(request.model)
    inventory = _stored_inventory(source, folder)
    if inventory is not None:
        known = stored_report(request, inventory, folder)
        if known is not None:
            return known
    if request.sibling is not None:
        own = inventory or _open(source, folder, request.stream, progress)[0].network.inventory
        return borrow_profile(request, own, folder)
    from .device import choose_device
    from .profile_work import ProfileWork

    loaded, hollow = _open(source, folder, request.stream, progress, choose_device(request.device))
    known = stored_report(request, loaded.network.inventory, folder)
    if known is not None:
        return known
    _check_can_do(request, loaded.network.inventory, hollow)
    return ProfileWork(request, prepare(request, loaded, folder), hollow, folder)


def _check_can_do(request: ProfileRequest, inventory: Inventory, hollow: Hollow | None) -> None:
    """Raises UsageError for what a hollow model cannot do, Infeasible for a budget to calibrate for that nothing meets."""
    short = f"model {request.model!r} does not fit in memory"
    if hollow is not None and not METRICS[request.metric].streams:
        raise UsageError(f"{short} and metric {request.metric!r} needs it there; take kl_fisher")
    if request.until_stable is not None:
        if hollow is not None:
            raise UsageError(f"{short} and --until-stable needs it there; leave --until-stable out")
        from .solve import check_budget

        check_budget(inventory, PlanRequest(request, request.until_stable))


def _open(
    source: Source, home: Path, stream: bool, progress: Progress, device: torch.device | None = None
) -> tuple[Loaded, Hollow | None]:
    """The model loaded to `device` (None: the CPU) or, where asked or where memory is short here or there, hollow; its
    inventory is kept."""
    from ..sensitivity.network import CPU
    from .device import free_bytes

    device = device or CPU
    if not (stream or larger_than(source, min(free_bytes(CPU), free_bytes(device)))):
        return load_model(source, home, progress, device), None
    from .hollow import open_hollow

    progress("load", 0, 1)
    try:
        hollow = open_hollow(source, home, device)
    except ModelError:
        if stream:
            raise
        return load_model(source, home, progress, device), None  # it is no row of blocks: it may still fit, closely
    progress("load", 1, 1)
    _keep_inventory(source, hollow.loaded.network.inventory, home)
    return hollow.loaded, hollow


def _keep_inventory(source: Source, inventory: Inventory, home: Path) -> None:
    document = {"version": INVENTORY_VERSION, "inventory": inventory.to_json()}
    write_whole(home / "inventories" / f"{source.key[:32]}.json", json.dumps(document).encode())


def _stored_inventory(source: Source, home: Path) -> Inventory | None:
    document = read_json(home / "inventories" / f"{source.key[:32]}.json")
    if document is None or document.get("version") != INVENTORY_VERSION:
        return None
    return replace(Inventory.from_json(document["inventory"]), model_id=source.model_id)
