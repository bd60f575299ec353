"""What a plan knows of each unit: its loss and error bar, its bytes, and what the next better format would buy.

Tied units share one choice, so that loss and bytes are those of the whole choice; `tied` says how many units make it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .wording import MIB

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..allocator import Plan, SensitivityReport


@dataclass(frozen=True)
class Step:
    """A better format for a unit: the bytes it takes more, and the loss it saves."""

    format: str
    bytes: int
    saved: float

    @property
    def per_mib(self) -> float:
        """What each MiB spent on it would save: comparable with the plan's own price."""
        return MIB * self.saved / self.bytes


@dataclass(frozen=True)
class UnitFacts:
    """One unit under a plan; `stderr` is None where the profile that knows it is not at hand."""

    unit: str
    format: str
    tied: int
    loss: float
    stderr: float | None
    bytes: int
    step: Step | None


def unit_facts(plan: Plan, report: SensitivityReport | None = None) -> dict[str, UnitFacts]:
    """Unit -> what is known of it. `report` is the plan's own profile, for the error bars."""
    certificate = plan.certificate
    errors = _errors(report)
    facts = {}
    for units, losses, costs, choice in zip(
        certificate.items, certificate.loss, certificate.cost, certificate.choice, strict=True
    ):
        taken = losses[choice] or 0
        name = certificate.formats[choice]
        step = _next_step(certificate.formats, losses, costs, choice, certificate.loss_scale)
        known = [errors.get((unit, name)) for unit in units]
        # Units are measured on the same batches, so their errors are added, as those of the plan are.
        stderr = None if None in known else sum(error for error in known if error is not None)
        for unit in units:
            facts[unit] = UnitFacts(unit, name, len(units), taken / certificate.loss_scale, stderr, costs[choice], step)
    return facts


def _next_step(formats: list[str], losses: list[int | None], costs: list[int], choice: int, scale: int) -> Step | None:
    """The larger format that saves most a byte; None when no larger one loses less."""
    taken = losses[choice] or 0
    steps = [
        Step(name, cost - costs[choice], (taken - loss) / scale)
        for name, loss, cost in zip(formats, losses, costs, strict=True)
        if loss is not None and loss < taken and cost > costs[choice]
    ]
    return max(steps, key=lambda step: step.per_mib, default=None)


def _errors(report: SensitivityReport | None) -> Mapping[tuple[str, str], float]:
    if report is None or report.stderr is None:
        return {}
    return {
        (unit, name): float(error)
        for unit, row in zip(report.units, report.stderr, strict=True)
        for name, error in zip(report.formats, row, strict=True)
    }
