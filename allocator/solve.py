"""From a stored profile to a certified plan: milliseconds, no torch.

`plan_from_profile` builds the choice problem, solves it, has the answer certified, and writes the document.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels.formats import FORMATS
from ..sensitivity.report import SensitivityReport
from ..sensitivity.units import QUANTITIES, Inventory
from ..solvers import best
from ..solvers.certificate import ScaledTables, scaled
from ..solvers.certificate import answer as certified
from ..solvers.problem import ChoiceProblem, Solution
from .budget import readable
from .build import Built, build_on, build_problem
from .errors import BitplanError
from .groundwork import Groundwork, lay_groundwork
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

Ints = npt.NDArray[np.int64]
VERSIONED = ("bitplan", "torch", "transformers", "numpy")


def check_budget(inventory: Inventory, request: PlanRequest) -> Built:
    """Build the problem for its bytes alone. Raises Infeasible or UsageError, before anything is measured."""
    request.check()
    return build_problem(inventory, None, request)


def needs_profile(inventory: Inventory, request: PlanRequest) -> bool:
    """Whether anything has to be measured: not when the limits hold the untouched model."""
    return needs_measuring(check_budget(inventory, request))


def needs_measuring(built: Built) -> bool:
    """`needs_profile`, of a request whose problem is built for its bytes alone."""
    timing, limit = built.timing, built.latency_limit
    too_slow = timing is not None and limit is not None and timing.untouched > limit.nanoseconds
    return built.limit_bytes < built.maximum_bytes or bool(built.pins) or too_slow


def plan_from_profile(inventory: Inventory, report: SensitivityReport | None, request: PlanRequest) -> Plan:
    """The plan for `request`, given what was measured (None only when nothing had to be).

    Raises Infeasible, UsageError, UnknownName.
    """
    request.check()
    return plan_of(answer_on(lay_groundwork(inventory, report, request), request))


@dataclass(frozen=True, eq=False)
class Answer:
    """A request, its problem, and the certified choice (items,)."""

    request: PlanRequest
    built: Built
    solution: Solution
    choice: Ints


def answer_on(ground: Groundwork, request: PlanRequest) -> Answer:
    """Solve a checked request on its groundwork, or on that of one that differs in limits and solver. Raises Infeasible."""
    built = build_on(ground, request)
    if ground.report is None:
        choice = ground.untouched
        built = _only(built, choice)
        solution = certified(built.problem, choice, [Fraction(0)] * built.problem.resources, "none", time.perf_counter())
    elif request.solver == "best" and built.problem.plain:
        solution = best.solve(built.problem, warm=ground.warm)
    else:
        solution = SOLVERS[request.solver](built.problem)
    if solution.choice is None:
        raise BitplanError(f"solver {request.solver!r} found no plan ({solution.status.value}); use the solver 'best'")
    return Answer(request, built, solution, solution.choice)


def plan_of(answer: Answer) -> Plan:
    """The whole plan."""
    assignment = answer.built.assignment(answer.choice)
    planned, predicted, key = _latency(answer)
    ground = answer.built.ground
    profile_id = None if ground.report is None else ground.report.id
    identity = plan_id(
        ground.inventory.fingerprint, ground.target, answer.built.limit_bytes, ground.pins, assignment, profile_id, key
    )
    small = small_parts(answer, planned, predicted)
    return Plan(id=identity, pins=ground.pins, assignment=assignment, certificate=_certificate(answer), **small)


def small_parts(
    answer: Answer, planned: PlannedLatency | None = None, predicted: PredictedLatency | None = None
) -> dict[str, Any]:
    """The fields of a plan that do not grow with the model: `model`, `target`, `budget`, `predicted`, `provenance`, `notes`."""
    ground, request, built, solution = answer.built.ground, answer.request, answer.built, answer.solution
    inventory, report, limit = ground.inventory, ground.report, built.limit_bytes
    return {
        "model": PlannedModel(
            id=inventory.model_id,
            fingerprint=inventory.fingerprint,
            architecture=inventory.architecture,
            family=inventory.family,
            parameters=inventory.unit_parameters + ground.fixed_parameters,
            native_bytes=inventory.native_bytes,
        ),
        "target": ground.target,
        "budget": PlannedBudget(
            text=request.budget,
            limit_bytes=limit,
            units_limit_bytes=limit - inventory.fixed_bytes,
            minimum_bytes=built.minimum_bytes,
            maximum_bytes=built.maximum_bytes,
            latency=planned,
        ),
        "predicted": _predicted(answer, predicted),
        "provenance": Provenance(
            profile_id=None if report is None else report.id,
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
        "notes": _notes(built),
    }


def _only(built: Built, choice: Ints) -> Built:
    """`built` with no other option than `choice`: of what was not measured nothing is claimed."""
    problem = built.problem
    allowed = np.arange(problem.loss.shape[1]) == choice[:, None]
    return replace(built, problem=ChoiceProblem(problem.loss, problem.cost, problem.limit, allowed))


def _latency(answer: Answer) -> tuple[PlannedLatency | None, PredictedLatency | None, tuple[str, str, int] | None]:
    """The limit on the latency and the prediction as the document has them, and what of them the plan's id hashes."""
    timing, limit, choice = answer.built.timing, answer.built.latency_limit, answer.choice
    if timing is None or limit is None:
        return None, None, None
    device = timing.device
    planned = PlannedLatency(
        device=device.name, table=device.digest, limit_ms=limit.nanoseconds / 1e6, minimum_ms=limit.minimum / 1e6
    )
    known = bool(timing.known[np.arange(len(choice)), choice].all())
    source = device.source + ("; some products by its formula" if device.measured and not known else "")
    predicted = PredictedLatency(ms=int(answer.solution.cost[1]) / 1e6, device=device.name, measured=known, source=source)
    return planned, predicted, (device.name, device.digest, limit.nanoseconds)


def _predicted(answer: Answer, latency: PredictedLatency | None) -> Predicted:
    """Bytes by part, bits a weight, and the standard error of the loss: units are measured on the same batches, so their
    errors are added, not added in quadrature."""
    ground, choice = answer.built.ground, answer.choice
    inventory, report = ground.inventory, ground.report
    items = np.arange(len(choice))
    parts = {part: int(table[items, choice].sum()) for part, table in ground.parts.items()}
    used, first = np.unique(choice[ground.item_of_unit], return_index=True)
    in_order = used[np.argsort(first)].tolist()  # as they are met in the inventory
    weights = {j: int(ground.parameters[choice == j].sum()) for j in in_order}
    nominal = sum(FORMATS[ground.formats[j]].bits * count for j, count in weights.items())
    stderr = None
    if ground.stderr is not None:
        taken = ground.stderr[np.arange(len(ground.stderr)), np.repeat(choice, ground.units_of_item)]
        stderr = float(np.add.accumulate(taken)[-1])  # one after the other, as the assignment lists them
    stored = sum(parts.values())
    return Predicted(
        loss=answer.solution.loss,
        stderr=stderr,
        quantity=QUANTITIES[inventory.outputs] if report is None else report.quantity,
        bytes=BytesByPart(
            total=stored + inventory.fixed_bytes,
            fixed=inventory.fixed_bytes,
            by_format={ground.formats[j]: int(ground.stored[choice == j, j].sum()) for j in in_order},
            **parts,
        ),
        stored_bits_per_weight=8 * stored / inventory.unit_parameters,
        nominal_bits_per_weight=nominal / inventory.unit_parameters,
        latency=latency,
    )


def _certificate(answer: Answer) -> PlanCertificate:
    built, solution = answer.built, answer.solution
    tables, certificate = scaled(built.problem), solution.certificate
    assert certificate is not None
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
        loss=losses_or_none(tables),
        loss_scale=tables.scale,
        cost=tables.cost[0].tolist(),
        limit=int(tables.limit[0]),
        choice=answer.choice.tolist(),
        multiplier_numerator=multiplier.numerator,
        multiplier_denominator=multiplier.denominator,
        lower_bound=float(certificate.lower_bound / certificate.loss_scale),
        gap=float(certificate.gap / certificate.loss_scale),
        proof=solution.proof,
        latency=clock,
    )


def losses_or_none(tables: ScaledTables) -> list[list[int | None]]:
    """Scaled losses (items, formats), None where an option is not allowed."""
    return [
        [value if ok else None for value, ok in zip(row, mask, strict=True)]
        for row, mask in zip(tables.loss.tolist(), tables.allowed.tolist(), strict=True)
    ]


def _notes(built: Built) -> list[str]:
    ground = built.ground
    inventory, report, notes = ground.inventory, ground.report, []
    if built.limit_bytes > inventory.native_bytes:
        notes.append(f"the budget is above the model's own size, {readable(inventory.native_bytes)}: a larger one buys nothing")
    notes += [] if built.timing is None else latency_notes(inventory, built.timing)
    notes += [] if report is None else report.notes
    if ground.unreached:
        notes.append(
            f"{len(ground.unreached)} units were never reached by the calibration data ({ground.unreached[0]}, ...), so their "
            "losses read zero; calibrate on more or wider data if they matter"
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
