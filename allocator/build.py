"""From a network's terms to a choice problem and back: the groundwork under the limits of a request.

`build_problem` gives items (groups of tied units) x options (formats) with their losses and bytes; `Built.assignment`
turns a choice over items back into a format for each unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..sensitivity.report import SensitivityReport
from ..sensitivity.units import Inventory
from ..solvers.problem import ChoiceProblem
from .budget import Budget, readable
from .errors import Infeasible
from .groundwork import Groundwork, lay_groundwork
from .request import PlanRequest
from .timing import Limit, Timing, least_time, nanoseconds_of


@dataclass(frozen=True, eq=False)
class Built:
    """A choice problem with the way back. `items[i]` are the units of item i; `formats[j]` is option j. Its first limit is
    in bytes; with a `latency_limit` there is a second in nanoseconds, whose costs are those of `timing`."""

    ground: Groundwork
    problem: ChoiceProblem
    limit_bytes: int
    latency_limit: Limit | None = None

    @property
    def items(self) -> tuple[tuple[str, ...], ...]:
        return self.ground.items

    @property
    def formats(self) -> tuple[str, ...]:
        return self.ground.formats

    @property
    def pins(self) -> dict[str, str]:
        return self.ground.pins

    @property
    def minimum_bytes(self) -> int:
        return self.ground.minimum_bytes

    @property
    def maximum_bytes(self) -> int:
        return self.ground.maximum_bytes

    @property
    def timing(self) -> Timing | None:
        return self.ground.timing

    def assignment(self, choice: npt.NDArray[np.int64]) -> dict[str, str]:
        """Unit -> format for a choice of one option an item."""
        return {unit: self.formats[j] for units, j in zip(self.items, choice.tolist(), strict=True) for unit in units}


def build_problem(inventory: Inventory, report: SensitivityReport | None, request: PlanRequest) -> Built:
    """The choice problem of `request`. Without a report losses are zero and the bytes alone are meant.

    Raises Infeasible, with the range of budgets that can be met, UsageError for pins that match nothing or cannot be.
    """
    return build_on(lay_groundwork(inventory, report, request), request)


def build_on(ground: Groundwork, request: PlanRequest) -> Built:
    """`build_problem` on the groundwork of the same request, or of one that differs in its limits. Raises Infeasible."""
    inventory, problem = ground.inventory, ground.problem
    limit = Budget.parse(request.budget).limit_bytes(inventory, *ground.settled)
    if limit < ground.minimum_bytes:
        raise Infeasible(
            f"budget {request.budget} is {readable(limit)}, and model {inventory.model_id} needs at least "
            f"{readable(ground.minimum_bytes)} with these formats and pins (at most {readable(ground.maximum_bytes)}); raise the "
            "budget or allow smaller formats",
            ground.minimum_bytes,
            ground.maximum_bytes,
        )
    units_limit = min(limit - inventory.fixed_bytes, ground.dearest_bytes)
    timing = ground.timing
    if timing is None or request.latency_ms is None:
        return Built(ground, problem.within(np.array([units_limit])), limit)
    allowance = nanoseconds_of(request.latency_ms)
    fastest = least_time(timing, ground.cost, units_limit, problem.allowed)
    if fastest > allowance:
        ever = least_time(timing, ground.cost, ground.dearest_bytes, problem.allowed)
        raise Infeasible(
            f"a latency of {request.latency_ms:g} ms on {request.timed_on} cannot be met: within {request.budget} the fastest "
            f"plan of {inventory.model_id} takes {fastest / 1e6:.6f} ms a token, and the fastest of any size {ever / 1e6:.6f} "
            "ms; raise --latency-ms or the budget, or allow other formats",
            ground.minimum_bytes,
            ground.maximum_bytes,
            minimum_latency_ms=fastest / 1e6,
        )
    return Built(ground, problem.within(np.array([units_limit, allowance])), limit, Limit(allowance, fastest))
