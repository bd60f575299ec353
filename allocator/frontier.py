"""What a plan's own certificate says beyond the plan: the frontier of all budgets, and each unit's alternatives."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..solvers.frontier import frontier
from ..solvers.problem import ChoiceProblem
from .proof import PlanCertificate


def problem_of(certificate: PlanCertificate) -> ChoiceProblem:
    """The choice problem that the plan answers, losses in the plan's quantity, bytes of the units."""
    allowed = np.array([[value is not None for value in row] for row in certificate.loss])
    loss = np.array([[0 if value is None else value for value in row] for row in certificate.loss], dtype=np.float64)
    return ChoiceProblem(loss / certificate.loss_scale, np.array([certificate.cost]), np.array([certificate.limit]), allowed)


def frontier_of(certificate: PlanCertificate, fixed_bytes: int) -> list[dict[str, float]]:
    """Vertices of the lower hull as `bytes` of the whole model, `loss`, and `multiplier`, the loss that the next byte saves."""
    hull = frontier(problem_of(certificate))
    return [
        {"bytes": int(budget) + fixed_bytes, "loss": float(loss), "multiplier": float(price)}
        for budget, loss, price in zip(hull.budgets, hull.losses, hull.multipliers, strict=True)
    ]


def explain_unit(certificate: PlanCertificate, unit: str) -> dict[str, Any]:
    """`{"unit", "tied_with", "format", "alternatives": [...]}`; each alternative has `format`, `loss`, `bytes` and `priced`,
    its loss plus its bytes at the plan's multiplier: the format taken is among the cheapest by that price."""
    item = next(i for i, units in enumerate(certificate.items) if unit in units)
    price = certificate.multiplier_numerator / certificate.multiplier_denominator
    alternatives = [
        {
            "format": fmt,
            "loss": loss / certificate.loss_scale,
            "bytes": cost,
            "priced": (loss + price * cost) / certificate.loss_scale,
            "taken": j == certificate.choice[item],
        }
        for j, (fmt, loss, cost) in enumerate(
            zip(certificate.formats, certificate.loss[item], certificate.cost[item], strict=True)
        )
        if loss is not None
    ]
    tied = [name for name in certificate.items[item] if name != unit]
    return {
        "unit": unit,
        "tied_with": tied,
        "format": certificate.formats[certificate.choice[item]],
        "alternatives": alternatives,
    }
