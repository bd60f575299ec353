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
from torch import Tensor, nn
from torch.nn import functional

from ..kernels.float64 import as_float64
from ..kernels.linear import QuantizedConv2d, QuantizedEmbedding
from ..kernels.packing import PackedWeight
from ..kernels.reference import dequantize
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
from .plan import Plan
from .profile import Prepared
from .solve import versions

KERNEL_TOLERANCE = 1e-5  # of the largest output, float32 sums against float64
CLOSE = 2.0  # paired standard errors within which two losses count as equal


@dataclass(frozen=True)
class KernelCheck:
    """The largest difference between a module's product and the float64 reference, relative to the largest output."""

    unit: str
    backend: str
    max_difference: float
    tolerance: float
    passed: bool


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
    checks, errors = _check_units(prepared, module, plan)
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


def _check_units(prepared: Prepared, module: nn.Module, plan: Plan) -> tuple[tuple[KernelCheck, ...], dict[str, float]]:
    """Each packed product against float64 on random inputs, and each unit's relative squared weight error."""
    checks, errors = [], {}
    untouched = prepared.loaded.network.module
    generator = torch.Generator().manual_seed(0)
    for unit in prepared.loaded.network.inventory.units:
        lost = total = 0.0
        for matrix in unit.matrices:
            holder = module.get_submodule(matrix.module)
            original = untouched.get_parameter(f"{matrix.module}.weight").flatten(1)
            packed = getattr(holder, "packed", None)
            if not isinstance(packed, PackedWeight):
                lost += float((holder.get_parameter("weight").flatten(1) - original).square().sum())
                total += float(original.square().sum())
                continue
            weight = dequantize(packed)
            lost += float((weight - original).square().sum())
            total += float(original.square().sum())
            for path in (matrix.module, *(unit.shared_with if matrix is unit.matrices[0] else ())):
                used = module.get_submodule(path)
                given, exact = _product(used, weight, generator)
                difference = float((as_float64(given) - exact).abs().max() / exact.abs().max().clamp_min(1e-30))
                backend = str(used.backend)
                checks.append(KernelCheck(path, backend, difference, KERNEL_TOLERANCE, difference <= KERNEL_TOLERANCE))
        errors[unit.name] = lost / total if total else 0.0
    return tuple(checks), errors


def _product(holder: nn.Module, weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What a packed module gives for random inputs, and what float64 gives with `weight`, its numbers, for the same."""
    if isinstance(holder, QuantizedEmbedding):
        ids = torch.randint(len(weight), (8,), generator=generator).to(weight.device)
        return holder(ids), as_float64(weight[ids])
    bias = as_float64(holder.bias) if isinstance(holder.bias, Tensor) else None
    if isinstance(holder, QuantizedConv2d):
        kernel = as_float64(weight).reshape(holder.kernel_shape)
        sides = [step * (size - 1) + 3 for size, step in zip(kernel.shape[2:], holder.dilation, strict=True)]
        x = torch.randn(2, kernel.shape[1] * holder.groups, *sides, generator=generator).to(weight.device)
        settings: Any = (holder.stride, holder.padding, holder.dilation, holder.groups)
        return holder(x), functional.conv2d(as_float64(x), kernel, bias, *settings)
    x = torch.randn(2, weight.shape[1], generator=generator).to(weight.device)
    return holder(x), functional.linear(as_float64(x), as_float64(weight), bias)


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
