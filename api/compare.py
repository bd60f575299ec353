"""Two plans of one model, side by side: which units differ, and what that does to bytes and loss.

Tied units share one choice, and the two plans may tie differently (another target). Rows are therefore the smallest
sets of units that are made of whole items in both plans, so that each row's bytes and loss are sums over whole items
and no byte is counted twice.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ..allocator.errors import PlanMismatch

if TYPE_CHECKING:
    from ..allocator import Plan


def compare_plans(a: Plan, b: Plan) -> dict[str, Any]:
    """`{"a", "b": totals, "rows": [{"units", "a": {"formats", "bytes", "loss"}, "b": ..., }]}`, largest change of bytes
    first; only rows in which some unit differs. Raises PlanMismatch for plans of different models."""
    if a.model.fingerprint != b.model.fingerprint:
        raise PlanMismatch(
            f"plans {a.id[:12]} and {b.id[:12]} are of different models ({a.model.id}, {b.model.id}); compare plans of one"
        )
    rows: list[dict[str, Any]] = []
    for group in _common_groups(a.certificate.items, b.certificate.items):
        differing = sorted(unit for unit in group if a.assignment[unit] != b.assignment[unit])
        if differing:
            rows.append({"units": differing, "a": _side(a, group), "b": _side(b, group)})
    rows.sort(key=lambda row: -abs(row["b"]["bytes"] - row["a"]["bytes"]))
    return {"a": _totals(a), "b": _totals(b), "units": len(a.assignment), "rows": rows}


def _common_groups(*partitions: list[list[str]]) -> list[set[str]]:
    """The finest partition of the units that is coarser than each of the given ones (union-find)."""
    parent: dict[str, str] = {}

    def root(unit: str) -> str:
        parent.setdefault(unit, unit)
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return unit

    for item in (item for partition in partitions for item in partition):
        for unit in item:
            parent[root(unit)] = root(item[0])
    groups: dict[str, set[str]] = {}
    for unit in list(parent):
        groups.setdefault(root(unit), set()).add(unit)
    return list(groups.values())


def _side(plan: Plan, units: set[str]) -> dict[str, Any]:
    certificate = plan.certificate
    taken = 0
    loss = 0.0
    for item, losses, costs, choice in zip(
        certificate.items, certificate.loss, certificate.cost, certificate.choice, strict=True
    ):
        if item[0] in units:
            taken += costs[choice]
            loss += (losses[choice] or 0) / certificate.loss_scale
    formats = Counter(plan.assignment[unit] for unit in units)
    return {"formats": dict(formats.most_common()), "bytes": taken, "loss": loss}


def _totals(plan: Plan) -> dict[str, Any]:
    predicted = plan.predicted
    return {
        "id": plan.id,
        "target": plan.target,
        "budget": plan.budget.text,
        "bytes": predicted.bytes.total,
        "loss": predicted.loss,
        "stderr": predicted.stderr,
        "quantity": predicted.quantity,
    }
