"""What a plan's own certificate says beyond the plan: the frontier of all budgets, and each unit's alternatives."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..solvers.frontier import frontier
from ..solvers.problem import ChoiceProblem
from .proof import LatencyCertificate, PlanCertificate


def problem_of(certificate: PlanCertificate) -> ChoiceProblem:
    """The choice problem that the plan answers, losses in the plan's quantity, bytes of the units, and nanoseconds where the
    latency is limited."""
    allowed = np.array([[value is not None for value in row] for row in certificate.loss])
    loss = np.array([[0 if value is None else value for value in row] for row in certificate.loss], dtype=np.float64)
    costs, limits = [certificate.cost], [certificate.limit]
    if certificate.latency is not None:
        costs.append(certificate.latency.cost)
        limits.append(certificate.latency.limit)
    return ChoiceProblem(loss / certificate.loss_scale, np.array(costs), np.array(limits), allowed)


def frontier_of(certificate: PlanCertificate, fixed_bytes: int) -> list[dict[str, float]]:
    """Vertices of the lower hull as `bytes` of the whole model, `loss`, and `multiplier`, the loss that the next byte saves.
    A limit on the latency is set aside."""
    hull = frontier(problem_of(certificate.model_copy(update={"latency": None})))
    return [
        {"bytes": int(budget) + fixed_bytes, "loss": float(loss), "multiplier": float(price)}
        for budget, loss, price in zip(hull.budgets, hull.losses, hull.multipliers, strict=True)
    ]


def explain_unit(certificate: PlanCertificate, unit: str) -> dict[str, Any]:
    """`{"unit", "tied_with", "format", "alternatives": [...]}`; each alternative has `format`, `loss`, `bytes` and `priced`,
    its loss plus its bytes at the plan's multiplier: the format taken is among the cheapest by that price. Where the latency is
    limited, it has `nanoseconds` too, and they are priced at theirs."""
    item = next(i for i, units in enumerate(certificate.items) if unit in units)
    price, clock = _price(certificate), certificate.latency
    times = [0] * len(certificate.formats) if clock is None else clock.cost[item]
    moment = 0.0 if clock is None else _price(clock)
    alternatives = [
        {
            "format": fmt,
            "loss": loss / certificate.loss_scale,
            "bytes": cost,
            **({} if clock is None else {"nanoseconds": time}),
            "priced": (loss + price * cost + moment * time) / certificate.loss_scale,
            "taken": j == certificate.choice[item],
        }
        for j, (fmt, loss, cost, time) in enumerate(
            zip(certificate.formats, certificate.loss[item], certificate.cost[item], times, strict=True)
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


def _price(limited: PlanCertificate | LatencyCertificate) -> float:
    return limited.multiplier_numerator / limited.multiplier_denominator
