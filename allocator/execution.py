"""execute: make a plan real. The untouched model is loaded, and every unit replaced by its rendering."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..kernels.formats import FORMATS
from ..sensitivity.progress import Progress, silent
from ..sensitivity.render import Renderings
from ..sensitivity.units import Inventory
from .device import choose_device, full_precision
from .errors import PlanMismatch, UnknownName, VerificationFailed
from .executed import measured_bytes, quantized_copy, save_executed
from .home import home_folder, writing
from .models import Loaded
from .plan import Plan
from .prepared import Prepared, prepare
from .profile import load_model
from .request import ProfileRequest
from .source import resolve


def execute(
    plan: Plan,
    out: Path | str | None = None,
    *,
    device: str = "auto",
    home: Path | str | None = None,
    progress: Progress = silent,
) -> nn.Module:
    """The quantized model of `plan` on `device` (see `device.py`); with `out`, also written to that new folder, loadable with
    `load_executed`.

    Raises PlanMismatch when the model is not the one that was planned, UsageError when `out` is taken or the device is not
    there, VerificationFailed when the file's bytes are not those promised.
    """
    folder = home_folder(home)
    with full_precision():
        prepared = prepare_plan(plan, folder, progress, choose_device(device))
        module = executed_module(prepared, plan.assignment, progress)
    if out is not None:
        target = Path(out).absolute()  # a new folder takes its place, though it were the one where we stand
        write(target, module, prepared.loaded, plan)
        stored = sum(measured_bytes(target)[0].values())
        if stored != plan.predicted.bytes.total:
            raise VerificationFailed(
                f"{out} holds {stored} bytes of weights where plan {plan.id[:12]} promised {plan.predicted.bytes.total}; "
                "report this as a fault of bitplan"
            )
    return module


def prepare_plan(plan: Plan, home: Path, progress: Progress = silent, device: torch.device | None = None) -> Prepared:
    """The plan's model on `device` (None: the CPU), data and renderings, as they were when it was profiled. Raises
    PlanMismatch."""
    loaded = load_model(resolve(plan.model.id), home, progress, device)
    check_plan(plan, loaded.network.inventory)
    if plan.provenance.profile_id is None:  # the untouched model: nothing is rendered, and no data needed
        return Prepared(loaded, None, Renderings(home, loaded.network, "nearest", None))
    settings = plan.provenance.settings
    request = ProfileRequest(
        plan.model.id,
        plan.provenance.metric,
        None if settings["formats"] is None else tuple(settings["formats"]),
        settings["calibration"],
        settings["tokens"],
        plan.provenance.seed,
        plan.provenance.rounding,
    )
    request.check()
    prepared = prepare(request, loaded, home)
    if plan.provenance.render_fingerprint not in ("", prepared.renderings.fingerprint):
        raise PlanMismatch(
            "the calibration data of the plan is not what it was when the model was profiled; put it back, or plan again"
        )
    return prepared


def check_plan(plan: Plan, inventory: Inventory) -> None:
    """Raise PlanMismatch unless the plan was made for this very model, UnknownName when it names a format that is not known."""
    for fmt in dict.fromkeys(plan.assignment.values()):
        if fmt not in FORMATS:
            raise UnknownName("format", fmt, FORMATS)
    units = {unit.name for unit in inventory.units}
    strange = sorted(set(plan.assignment) ^ units)
    if strange:
        raise PlanMismatch(
            f"plan {plan.id[:12]} and model {inventory.model_id} disagree about {len(strange)} units, {strange[0]} first; "
            "the plan was made for another model"
        )
    if plan.model.fingerprint != inventory.fingerprint:
        raise PlanMismatch(
            f"plan {plan.id[:12]} was made for another revision of {inventory.model_id} (weights differ); plan the model anew"
        )


def executed_module(prepared: Prepared, assignment: dict[str, str], progress: Progress = silent) -> nn.Module:
    """A copy of the network with each unit in its assigned format; what keeps its own dtype is shared with the original."""
    inventory, renderings = prepared.loaded.network.inventory, prepared.renderings
    changed = [unit for unit in inventory.units if assignment[unit.name] != unit.native]
    with writing(renderings.folder):
        renderings.make([(unit, assignment[unit.name]) for unit in changed], progress)
    rendered = {unit.name: renderings(unit, assignment[unit.name]) for unit in changed}
    return quantized_copy(prepared.loaded.network.module, inventory, rendered)


def write(folder: Path, module: nn.Module, loaded: Loaded, plan: Plan) -> None:
    """Write the executed model of `plan` to a new folder."""
    config = getattr(module, "shape_config", None)
    save_executed(folder, module, loaded.network.inventory, plan, loaded.folder, None if config is None else config())
