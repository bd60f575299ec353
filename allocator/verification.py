"""verify: promise beside fact. The plan is executed, its bytes counted in the file, its products checked against the reference,
its loss measured on data used for nothing else, and the best uniform plan of the same size measured beside it.

The rival at a budget is the better, measured, of the best single format that fits and two neighbouring formats filled in
layer order. Plan and rivals run on the same examples, so their difference is paired, example by example.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..sensitivity.calibration import Part, assert_disjoint
from ..sensitivity.compare import UNTOUCHED, Measured, compare, standard_error, task_figure, task_name
from ..sensitivity.progress import Progress, silent
from ..sensitivity.units import Inventory
from ..solvers.uniform import layer_order_fill, single_format
from .data import load_calibration
from .device import choose_device, full_precision
from .errors import UsageError
from .executed import measured_bytes
from .execution import executed_module, prepare_plan, write
from .frontier import problem_of
from .home import home_folder
from .kernel_checks import KernelCheck, check_experts, check_units, unit_errors
from .plan import Plan
from .prepared import Prepared
from .solve import versions

CLOSE = 2.0  # paired standard errors within which two losses count as equal


@dataclass(frozen=True)
class ExecutionReport:
    """What verify measured. `passed` follows from the numbers: bytes as promised and within the budget, kernels as the
    reference, and no rival better by more than two paired standard errors."""

    plan_id: str
    passed: bool
    promise_kept: bool
    verdict: str
    quantity: str
    bytes: dict[str, Any]
    loss: dict[str, float | None]
    task: dict[str, Any]
    rivals: tuple[dict[str, Any], ...]
    paired: dict[str, float] | None
    unit_errors: dict[str, float]
    kernel_checks: tuple[KernelCheck, ...]
    data_fingerprint: str
    examples: int
    device: str
    versions: dict[str, str]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def verify(
    plan: Plan,
    *,
    data: str | None = None,
    device: str = "auto",
    home: Path | str | None = None,
    progress: Progress = silent,
) -> ExecutionReport:
    """Measure `plan` against its promise and its rivals on `data` (None: the part of the calibration source kept for this),
    computing on `device` (see `device.py`).

    Raises PlanMismatch, UsageError, ModelError; a broken promise is reported, not raised.
    """
    with full_precision():
        return _verify(plan, data, choose_device(device), home_folder(home), progress)


def _verify(plan: Plan, data: str | None, device: torch.device, folder: Path, progress: Progress) -> ExecutionReport:
    started = time.perf_counter()
    prepared = prepare_plan(plan, folder, progress, device)
    network = prepared.loaded.network
    part = _verification_part(plan, prepared, data)
    module = executed_module(prepared, plan.assignment, progress)
    with tempfile.TemporaryDirectory(dir=folder, prefix="verify-") as temporary:
        target = Path(temporary) / "executed"
        write(target, module, prepared.loaded, plan)
        by_part, file_bytes = measured_bytes(target)
    total = sum(by_part.values())
    checks = (*check_units(prepared, module), *check_experts(module))
    errors = unit_errors(prepared, module)
    rivals = _rival_assignments(plan)
    copies = {"plan": module} | {name: executed_module(prepared, rival, progress) for name, rival in rivals.items()}
    measured = compare(network, copies, part, progress)
    task = task_name(network, part)
    ranked = sorted((name for name in rivals), key=lambda name: measured[name].loss)
    paired = _paired(measured["plan"], measured[ranked[0]]) if ranked else None
    promise_kept = total == plan.predicted.bytes.total <= plan.budget.limit_bytes and all(check.passed for check in checks)
    passed, verdict = _judge(plan, total, promise_kept, measured, ranked, paired)
    return ExecutionReport(
        plan_id=plan.id,
        passed=passed,
        promise_kept=promise_kept,
        verdict=verdict,
        quantity=network.quantity,
        bytes={"predicted": plan.predicted.bytes.total, "measured": total, "file_bytes": file_bytes, "by_part": by_part},
        loss={
            "predicted": plan.predicted.loss,
            "predicted_stderr": plan.predicted.stderr,
            "measured": measured["plan"].loss,
            "measured_stderr": _number(measured["plan"].loss_stderr),
        },
        task={
            "name": task,
            "untouched": task_figure(task, measured[UNTOUCHED]),
            "plan": task_figure(task, measured["plan"]),
            "rival": task_figure(task, measured[ranked[0]]) if ranked else None,
        },
        rivals=tuple(
            {
                "name": name,
                "bytes": _assignment_bytes(network.inventory, rivals[name]),
                "loss": measured[name].loss,
                "loss_stderr": _number(measured[name].loss_stderr),
            }
            for name in ranked
        ),
        paired=paired,
        unit_errors=errors,
        kernel_checks=checks,
        data_fingerprint=part.fingerprint,
        examples=part.examples,
        device=str(network.device),
        versions=versions(),
        seconds=time.perf_counter() - started,
    )


def _verification_part(plan: Plan, prepared: Prepared, data: str | None) -> Part:
    settings, calibration = plan.provenance.settings, prepared.calibration
    source = data if data is not None else settings["calibration"]
    if calibration is None or data is not None:
        if source is not None and not Path(source).exists():
            raise UsageError(f"verification data {source} does not exist; give a text file, or a folder of texts or images")
        verification = load_calibration(prepared.loaded, source, tokens=settings["tokens"], seed=plan.provenance.seed).verify
    else:
        verification = calibration.verify
    if calibration is not None:
        try:
            assert_disjoint(calibration.render, calibration.estimate, verification)
        except ValueError as error:
            raise UsageError(
                "the verification data overlaps the calibration data; give text or images of another source"
            ) from error
    return verification


def _rival_assignments(plan: Plan) -> dict[str, dict[str, str]]:
    """Name -> assignment of the uniform plans within the budget, from the plan's own tables; the plan itself left out."""
    problem, certificate = problem_of(plan.certificate), plan.certificate
    rivals = {}
    for choice in (single_format(problem), layer_order_fill(problem)):
        if choice is None:
            continue
        picked = [certificate.formats[j] for j in choice.tolist()]
        assignment = {unit: fmt for units, fmt in zip(certificate.items, picked, strict=True) for unit in units}
        if assignment != plan.assignment:
            used = list(dict.fromkeys(fmt for fmt, free in zip(picked, problem.allowed.sum(axis=1) > 1, strict=True) if free))
            rivals[f"{used[0]} everywhere" if len(used) == 1 else f"{' then '.join(used)}, in layer order"] = assignment
    return rivals


def _paired(plan: Measured, rival: Measured) -> dict[str, float]:
    """Plan minus rival, example by example."""
    difference = plan.divergence - rival.divergence
    return {
        "difference": float(np.average(difference, weights=plan.weights)),
        "stderr": standard_error(difference, plan.weights),
    }


def _judge(
    plan: Plan, total: int, kept: bool, measured: dict[str, Measured], ranked: list[str], paired: dict[str, float] | None
) -> tuple[bool, str]:
    if not kept:
        predicted, limit = plan.predicted.bytes.total, plan.budget.limit_bytes
        what = "a product differs from the reference"
        if total != predicted:
            what = f"{total} bytes are stored where {predicted} were promised"
        elif total > limit:
            what = f"{total} bytes are stored, more than the budget of {limit}"
        return False, f"The promise is broken: {what}; report this as a fault of bitplan."
    if paired is None:
        return True, "Bytes and products are as promised; no other uniform plan fits the budget."
    difference, stderr, rival = paired["difference"], paired["stderr"], ranked[0]
    if difference > CLOSE * stderr:
        return (
            False,
            f"Bytes and products are as promised, but {rival} measures better by {difference:.3g}: use that plan instead.",
        )
    if difference < -CLOSE * stderr:
        share = 1 - measured["plan"].loss / measured[rival].loss
        return True, f"Bytes and products are as promised, and the measured loss is {share:.0%} below that of {rival}."
    return True, f"Bytes and products are as promised; the measured loss cannot be told apart from that of {rival}."


def _assignment_bytes(inventory: Inventory, assignment: dict[str, str]) -> int:
    from ..kernels.formats import FORMATS

    return inventory.fixed_bytes + sum(unit.stored_bytes(FORMATS[assignment[unit.name]]) for unit in inventory.units)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
