"""From a stored profile to a certified plan: milliseconds, no torch.

`plan_from_profile` builds the choice problem, solves it, has the answer certified, and writes the document.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from dataclasses import replace
from fractions import Fraction
from functools import cache

import numpy as np

from ..kernels.formats import FORMATS
from ..sensitivity.report import SensitivityReport
from ..sensitivity.units import QUANTITIES, Inventory
from ..solvers.certificate import scaled
from ..solvers.problem import ChoiceProblem, Solution
from .budget import readable
from .build import Built, build_problem
from .errors import BitplanError
from .plan import (
    BytesByPart,
    Plan,
    PlannedBudget,
    PlannedLatency,
    PlannedModel,
    Predicted,
    PredictedLatency,
    Provenance,
    now,
    plan_id,
)
from .proof import LatencyCertificate, PlanCertificate
from .request import SOLVERS, PlanRequest
from .timing import latency_notes

VERSIONED = ("bitplan", "torch", "transformers", "numpy")


def check_budget(inventory: Inventory, request: PlanRequest) -> Built:
    """Build the problem for its bytes alone. Raises Infeasible or UsageError, before anything is measured."""
    request.check()
    return build_problem(inventory, None, request)


def needs_profile(inventory: Inventory, request: PlanRequest) -> bool:
    """Whether anything has to be measured: not when the limits hold the untouched model."""
    built = check_budget(inventory, request)
    return built.limit_bytes < built.maximum_bytes or bool(built.pins) or _too_slow(built)


def plan_from_profile(inventory: Inventory, report: SensitivityReport | None, request: PlanRequest) -> Plan:
    """The plan for `request`, given what was measured (None only when nothing had to be).

    Raises Infeasible, UsageError, UnknownName.
    """
    request.check()
    built = build_problem(inventory, report, request)
    if report is None:
        natives = {unit.name: unit.native for unit in inventory.units}
        choice = np.array([built.formats.index(natives[units[0]]) for units in built.items])
        built = _only(built, choice)
        return _document(inventory, None, request, built, built.assignment(choice), _untouched(built, choice))
    solution = SOLVERS[request.solver](built.problem)
    if solution.choice is None:
        raise BitplanError(f"solver {request.solver!r} found no plan ({solution.status.value}); use the solver 'best'")
    return _document(inventory, report, request, built, built.assignment(solution.choice), solution)


def _too_slow(built: Built) -> bool:
    """Whether the untouched model breaks a limit on the latency."""
    timing, limit = built.timing, built.latency_limit
    return timing is not None and limit is not None and timing.untouched > limit.nanoseconds


def _only(built: Built, choice: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Built:
    """`built` with no other option than `choice`: of what was not measured nothing is claimed."""
    problem = built.problem
    allowed = np.arange(problem.loss.shape[1]) == choice[:, None]
    return replace(built, problem=ChoiceProblem(problem.loss, problem.cost, problem.limit, allowed))


def _untouched(built: Built, choice: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Solution:
    from ..solvers.certificate import answer

    return answer(built.problem, choice, [Fraction(0)] * built.problem.resources, "none", time.perf_counter())


def _document(
    inventory: Inventory,
    report: SensitivityReport | None,
    request: PlanRequest,
    built: Built,
    assignment: dict[str, str],
    solution: Solution,
) -> Plan:
    limit = built.limit_bytes
    planned, predicted, key = _latency(request, built, solution)
    profile_id = None if report is None else report.id
    return Plan(
        id=plan_id(inventory.fingerprint, request.target, limit, built.pins, assignment, profile_id, key),
        model=PlannedModel(
            id=inventory.model_id,
            fingerprint=inventory.fingerprint,
            architecture=inventory.architecture,
            family=inventory.family,
            parameters=inventory.unit_parameters + sum(int(np.prod(tensor.shape)) for tensor in inventory.fixed),
            native_bytes=inventory.native_bytes,
        ),
        target=request.target,
        budget=PlannedBudget(
            text=request.budget,
            limit_bytes=limit,
            units_limit_bytes=limit - inventory.fixed_bytes,
            minimum_bytes=built.minimum_bytes,
            maximum_bytes=built.maximum_bytes,
            latency=planned,
        ),
        pins=built.pins,
        assignment=assignment,
        predicted=_predicted(inventory, report, assignment, solution.loss, predicted),
        certificate=_certificate(built, solution),
        provenance=Provenance(
            profile_id=profile_id,
            metric=request.profile.metric,
            solver=solution.solver,
            rounding=request.profile.rounding,
            settings={
                "tokens": request.profile.tokens,
                "calibration": request.profile.calibration,
                "formats": None if request.measured.formats is None else list(request.measured.formats),
            },
            data_fingerprint="" if report is None else report.data_fingerprint,
            render_fingerprint="" if report is None else report.render_fingerprint,
            seed=request.profile.seed,
            versions=versions(),
            created_at=now(),
            solve_seconds=solution.seconds,
        ),
        notes=_notes(inventory, report, request, built),
    )


def _latency(
    request: PlanRequest, built: Built, solution: Solution
) -> tuple[PlannedLatency | None, PredictedLatency | None, tuple[str, str, int] | None]:
    """The limit on the latency and the prediction as the document has them, and what of them the plan's id hashes."""
    timing, limit, choice = built.timing, built.latency_limit, solution.choice
    if timing is None or limit is None:
        return None, None, None
    assert choice is not None
    device = timing.device
    planned = PlannedLatency(
        device=device.name, table=device.digest, limit_ms=limit.nanoseconds / 1e6, minimum_ms=limit.minimum / 1e6
    )
    known = bool(timing.known[np.arange(len(choice)), choice].all())
    source = device.source + ("; some products by its formula" if device.measured and not known else "")
    predicted = PredictedLatency(ms=int(solution.cost[1]) / 1e6, device=device.name, measured=known, source=source)
    return planned, predicted, (device.name, device.digest, limit.nanoseconds)


def _predicted(
    inventory: Inventory,
    report: SensitivityReport | None,
    assignment: dict[str, str],
    loss: float,
    latency: PredictedLatency | None,
) -> Predicted:
    """Bytes by part, bits a weight, and the standard error of the loss: units are measured on the same batches, so their
    errors are added, not added in quadrature."""
    parts = {"codes": 0, "scales": 0, "zeros": 0, "native": 0}
    by_format: dict[str, int] = {}
    nominal = 0
    for unit in inventory.units:
        fmt = FORMATS[assignment[unit.name]]
        nominal += fmt.bits * unit.parameters
        by_format[fmt.name] = by_format.get(fmt.name, 0) + unit.stored_bytes(fmt)
        for matrix in unit.matrices:
            for part, count in fmt.parts_bytes(matrix.shape).items():
                parts["native" if fmt.family == "float" else part] += count
    stderr = None
    if report is not None and report.stderr is not None:
        rows = {name: u for u, name in enumerate(report.units)}
        columns = {name: f for f, name in enumerate(report.formats)}
        stderr = float(sum(report.stderr[rows[unit], columns[fmt]] for unit, fmt in assignment.items()))
    stored = sum(parts.values())
    return Predicted(
        loss=loss,
        stderr=stderr,
        quantity=QUANTITIES[inventory.outputs] if report is None else report.quantity,
        bytes=BytesByPart(total=stored + inventory.fixed_bytes, fixed=inventory.fixed_bytes, by_format=by_format, **parts),
        stored_bits_per_weight=8 * stored / inventory.unit_parameters,
        nominal_bits_per_weight=nominal / inventory.unit_parameters,
        latency=latency,
    )


def _certificate(built: Built, solution: Solution) -> PlanCertificate:
    tables = scaled(built.problem)
    certificate, choice = solution.certificate, solution.choice
    assert certificate is not None
    assert choice is not None
    multiplier, *rest = certificate.multipliers
    clock = None
    if rest:
        clock = LatencyCertificate(
            cost=tables.cost[1].tolist(),
            limit=int(tables.limit[1]),
            multiplier_numerator=rest[0].numerator,
            multiplier_denominator=rest[0].denominator,
        )
    return PlanCertificate(
        items=[list(units) for units in built.items],
        formats=list(built.formats),
        loss=[
            [value if ok else None for value, ok in zip(row, mask, strict=True)]
            for row, mask in zip(tables.loss.tolist(), tables.allowed.tolist(), strict=True)
        ],
        loss_scale=tables.scale,
        cost=tables.cost[0].tolist(),
        limit=int(tables.limit[0]),
        choice=choice.tolist(),
        multiplier_numerator=multiplier.numerator,
        multiplier_denominator=multiplier.denominator,
        lower_bound=float(certificate.lower_bound / certificate.loss_scale),
        gap=float(certificate.gap / certificate.loss_scale),
        proof=solution.proof,
        latency=clock,
    )


def _notes(inventory: Inventory, report: SensitivityReport | None, request: PlanRequest, built: Built) -> list[str]:
    notes = []
    if built.limit_bytes > inventory.native_bytes:
        notes.append(f"the budget is above the model's own size, {readable(inventory.native_bytes)}: a larger one buys nothing")
    notes += [] if built.timing is None else latency_notes(inventory, built.timing)
    notes += [] if report is None else report.notes
    if report is not None and report.stderr is not None:
        unreached = [u for u, row in zip(report.units, report.loss, strict=True) if not np.nansum(row) > 0]
        if unreached:
            notes.append(
                f"{len(unreached)} units were never reached by the calibration data ({unreached[0]}, ...), so their losses "
                "read zero; calibrate on more or wider data if they matter"
            )
    return notes


@cache
def versions() -> dict[str, str]:
    """Versions of what a plan's numbers depend on."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
