"""The points of the frontier figure: what a plan's own certificate and evidence say about size and loss.

Sizes are bytes of the whole model: a row of the certificate counts the units, and what no plan touches is added.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ..allocator import Plan

LINE_POINTS = 200
Kind = Literal["uniform", "plan", "measured plan", "measured rival"]


@dataclass(frozen=True)
class Point:
    """`href` is where a mark leads that can be opened."""

    kind: Kind
    name: str
    bytes: int
    loss: float
    stderr: float | None = None
    href: str | None = None


def frontier_points(plan: Plan) -> list[tuple[float, float]]:
    """(bytes, loss) of each vertex, smallest first."""
    return [(point["bytes"], point["loss"]) for point in plan.frontier()]


def drawn_line(vertices: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The frontier as a line through points close enough on logarithmic axes, where its straight pieces are bent. The
    vertices are among them unless there are more than can be seen apart."""
    if len(vertices) < 2:
        return list(vertices)
    sizes = [count for count, _ in vertices]
    low, high = math.log(sizes[0]), math.log(sizes[-1])
    between = [math.exp(low + (high - low) * step / LINE_POINTS) for step in range(1, LINE_POINTS)]
    shown = sizes if len(sizes) <= LINE_POINTS else [sizes[0], sizes[-1]]
    return [(count, _loss_at(vertices, sizes, count)) for count in sorted({*shown, *between})]


def _loss_at(vertices: Sequence[tuple[float, float]], sizes: list[float], count: float) -> float:
    right = min(max(bisect.bisect_left(sizes, count), 1), len(sizes) - 1)
    (start, above), (end, below) = vertices[right - 1], vertices[right]
    share = 0.0 if end == start else min(max((count - start) / (end - start), 0.0), 1.0)
    return above + share * (below - above)


def uniform_points(plan: Plan) -> list[Point]:
    """Each single format that every choice admits, as the certificate predicts it. Pinned choices keep their pin."""
    certificate = plan.certificate
    points = []
    for j, name in enumerate(certificate.formats):
        total = plan.predicted.bytes.fixed
        loss = 0
        for losses, costs in zip(certificate.loss, certificate.cost, strict=True):
            admitted = [option for option, value in enumerate(losses) if value is not None]
            option = admitted[0] if len(admitted) == 1 else j
            value = losses[option]
            if value is None:
                break
            total += costs[option]
            loss += value
        else:
            points.append(Point("uniform", name, total, loss / certificate.loss_scale))
    return points


def plan_point(plan: Plan) -> Point:
    return Point("plan", "this plan, predicted", plan.predicted.bytes.total, plan.predicted.loss, plan.predicted.stderr)


def measured_points(evidence: dict[str, Any] | None) -> list[Point]:
    """The plan and its rivals as measured."""
    if evidence is None:
        return []
    measured = evidence["loss"]
    own = Point(
        "measured plan", "this plan, measured", evidence["bytes"]["measured"], measured["measured"], measured["measured_stderr"]
    )
    rivals = [
        Point("measured rival", rival["name"], rival["bytes"], rival["loss"], rival.get("loss_stderr"))
        for rival in evidence["rivals"]
    ]
    return [own, *rivals]
