"""From a network's terms to a choice problem and back: formats filtered by target, ties merged, pins applied, bytes counted.

`build_problem` gives items (groups of tied units) x options (formats) with their losses and bytes; `Built.assignment`
turns a choice over items back into a format for each unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from math import isnan

import numpy as np
import numpy.typing as npt

from ..kernels.formats import FORMATS, Format
from ..sensitivity.report import SensitivityReport
from ..sensitivity.units import Inventory, Unit
from ..solvers.problem import ChoiceProblem
from .budget import Budget, readable
from .errors import Infeasible, UsageError
from .request import PlanRequest
from .targets import TARGETS
from .timing import Limit, Timing, least_time, nanoseconds_of, time_items


@dataclass(frozen=True, eq=False)
class Built:
    """A choice problem with the way back. `items[i]` are the units of item i; `formats[j]` is option j. Its first limit is
    in bytes; with a `latency_limit` there is a second in nanoseconds, whose costs are those of `timing`."""

    problem: ChoiceProblem
    items: tuple[tuple[str, ...], ...]
    formats: tuple[str, ...]
    pins: dict[str, str]
    limit_bytes: int
    minimum_bytes: int
    maximum_bytes: int
    timing: Timing | None = None
    latency_limit: Limit | None = None

    def assignment(self, choice: npt.NDArray[np.int64]) -> dict[str, str]:
        """Unit -> format for a choice of one option an item."""
        return {unit: self.formats[j] for units, j in zip(self.items, choice.tolist(), strict=True) for unit in units}


def build_problem(inventory: Inventory, report: SensitivityReport | None, request: PlanRequest) -> Built:
    """The choice problem of `request`. Without a report losses are zero and the bytes alone are meant.

    Raises Infeasible, with the range of budgets that can be met, UsageError for pins that match nothing or cannot be.
    """
    target = TARGETS[request.target]
    formats = request.measured.palette(inventory)
    pins = _resolve_pins(inventory, request)
    groups: dict[str, list[Unit]] = {}
    for unit in inventory.units:
        groups.setdefault(target.tie(unit) or unit.name, []).append(unit)
    # Lists first: a table of numpy is slow to fill number by number, and planning again should take no time.
    loss, cost, allowed = ([[start] * len(formats) for _ in groups] for start in (0.0, 0, True))
    measured = _measured(report)
    stored_bytes = cache(Format.stored_bytes)  # a model has few shapes
    for i, units in enumerate(groups.values()):
        for j, name in enumerate(formats):
            fmt = FORMATS[name]
            for unit in units:
                known = 0.0 if measured is None or name == unit.native else measured.get((unit.name, name), float("nan"))
                pinned = pins.get(unit.name, name)
                allowed[i][j] = allowed[i][j] and name == pinned and not isnan(known) and target.admits(unit, fmt)
                cost[i][j] += sum(stored_bytes(fmt, matrix.shape) for matrix in unit.matrices)
                loss[i][j] += known
        if not any(allowed[i]):
            names = ", ".join(sorted({f"{unit.name}={pins[unit.name]}" for unit in units if unit.name in pins})) or units[0].name
            raise UsageError(
                f"no format is left for {names} on target {request.target}: tied units must agree and the target must admit "
                "the format; change the pins or the formats"
            )
    tables = np.array(loss), np.array(cost, dtype=np.int64), np.array(allowed, dtype=bool)
    return _limited(inventory, request, groups, formats, pins, *tables)


def _limited(
    inventory: Inventory,
    request: PlanRequest,
    groups: dict[str, list[Unit]],
    formats: tuple[str, ...],
    pins: dict[str, str],
    loss: npt.NDArray[np.float64],
    cost: npt.NDArray[np.int64],
    allowed: npt.NDArray[np.bool_],
) -> Built:
    native = np.array([[all(unit.native == name for unit in units) for name in formats] for units in groups.values()])
    cheapest = np.where(allowed, cost, np.iinfo(np.int64).max).min(axis=1)
    untouched = np.where(allowed & native, cost, 0).max(axis=1)
    dearest = np.where(untouched > 0, untouched, np.where(allowed, cost, 0).max(axis=1))
    minimum = inventory.fixed_bytes + int(cheapest.sum())
    maximum = inventory.fixed_bytes + int(dearest.sum())
    settled = allowed.sum(axis=1) == 1  # by a pin, or because the target admits nothing else: outside a budget in bpw
    named = frozenset(unit.name for units, alone in zip(groups.values(), settled, strict=True) if alone for unit in units)
    limit = Budget.parse(request.budget).limit_bytes(inventory, named, int(cheapest[settled].sum()))
    if limit < minimum:
        raise Infeasible(
            f"budget {request.budget} is {readable(limit)}, and model {inventory.model_id} needs at least {readable(minimum)} "
            f"with these formats and pins (at most {readable(maximum)}); raise the budget or allow smaller formats",
            minimum,
            maximum,
        )
    units_limit = min(limit - inventory.fixed_bytes, int(dearest.sum()))
    items = tuple(tuple(unit.name for unit in units) for units in groups.values())
    if request.latency_ms is None:
        problem = ChoiceProblem(loss, cost[None], np.array([units_limit]), allowed)
        return Built(problem, items, formats, pins, limit, minimum, maximum)
    timing = time_items(inventory, groups.values(), formats, request.timed_on)
    allowance = nanoseconds_of(request.latency_ms)
    fastest = least_time(timing, cost, units_limit, allowed)
    if fastest > allowance:
        ever = least_time(timing, cost, int(dearest.sum()), allowed)
        raise Infeasible(
            f"a latency of {request.latency_ms:g} ms on {request.timed_on} cannot be met: within {request.budget} the fastest "
            f"plan of {inventory.model_id} takes {fastest / 1e6:.6f} ms a token, and the fastest of any size {ever / 1e6:.6f} "
            "ms; raise --latency-ms or the budget, or allow other formats",
            minimum,
            maximum,
            minimum_latency_ms=fastest / 1e6,
        )
    problem = ChoiceProblem(loss, np.stack([cost, timing.nanoseconds]), np.array([units_limit, allowance]), allowed)
    return Built(problem, items, formats, pins, limit, minimum, maximum, timing, Limit(allowance, fastest))


def _measured(report: SensitivityReport | None) -> dict[tuple[str, str], float] | None:
    """The report's losses by unit and format."""
    if report is None:
        return None
    return {
        (unit, fmt): float(value)
        for unit, row in zip(report.units, report.loss, strict=True)
        for fmt, value in zip(report.formats, row, strict=True)
    }


def _resolve_pins(inventory: Inventory, request: PlanRequest) -> dict[str, str]:
    pins: dict[str, str] = {}
    for pattern, fmt in request.pins:
        matched = [unit for unit in inventory.units if re.fullmatch(pattern, unit.name)]
        if not matched:
            example = inventory.units[0].name
            raise UsageError(f"pin {pattern!r} matches no unit of {inventory.model_id}; names look like {example!r}")
        for unit in matched:
            pins[unit.name] = unit.native if fmt == "native" else fmt
    return pins
