"""Groundwork: all of a choice problem that no limit changes, built once for every budget.

Formats filtered by target, ties merged, pins applied, losses looked up and bytes counted. What a budget needs beyond that
is a limit (`under`) and a solver that starts from what the tables alone say (`warm`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels.formats import FORMATS
from ..sensitivity.report import SensitivityReport
from ..sensitivity.units import Inventory, Unit
from ..solvers import core
from ..solvers.problem import ChoiceProblem
from .errors import UsageError
from .pins import matching
from .request import PlanRequest
from .targets import TARGETS
from .timing import Timing, time_items

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
PARTS = ("codes", "scales", "zeros", "native")


@dataclass(frozen=True, eq=False)
class Groundwork:
    """`items[i]` are the units of item i; `formats[j]` is option j. `report` None: losses are zero, the bytes alone are meant.

    `problem` bears a limit that keeps nothing out; `native` (items, formats) marks the units' own formats. With a `timing`
    there is a second limit to come.
    """

    inventory: Inventory
    report: SensitivityReport | None
    target: str
    items: tuple[tuple[str, ...], ...]
    formats: tuple[str, ...]
    pins: dict[str, str]
    problem: ChoiceProblem
    native: Bools
    timing: Timing | None

    @property
    def cost(self) -> Ints:
        """Bytes (items, formats)."""
        cost: Ints = self.problem.cost[0]
        return cost

    @cached_property
    def warm(self) -> core.Warm:
        """For the solvers that take one limit."""
        return core.Warm.up(self.problem)

    @cached_property
    def cheapest(self) -> Ints:
        """The fewest bytes of each item."""
        return np.asarray(np.where(self.problem.allowed, self.cost, np.iinfo(np.int64).max).min(axis=1))

    @cached_property
    def dearest_bytes(self) -> int:
        """Bytes of the items at their largest: their own formats where they may keep them, packing may make a tiny one larger."""
        allowed = self.problem.allowed
        untouched = np.where(allowed & self.native, self.cost, 0).max(axis=1)
        return int(np.where(untouched > 0, untouched, np.where(allowed, self.cost, 0).max(axis=1)).sum())

    @cached_property
    def minimum_bytes(self) -> int:
        return self.inventory.fixed_bytes + int(self.cheapest.sum())

    @cached_property
    def maximum_bytes(self) -> int:
        return self.inventory.fixed_bytes + self.dearest_bytes

    @cached_property
    def settled(self) -> tuple[int, int]:
        """Parameters and bytes of the items with one format left, by a pin or because the target admits nothing else: they
        stand outside a budget in bits a weight."""
        alone = self.problem.allowed.sum(axis=1) == 1
        return int(self.parameters[alone].sum()), int(self.cheapest[alone].sum())

    @cached_property
    def parameters(self) -> Ints:
        """Weights of each item."""
        counts = np.zeros(len(self.items), dtype=np.int64)
        np.add.at(counts, self.item_of_unit, [unit.parameters for unit in self.inventory.units])
        return counts

    @cached_property
    def item_of_unit(self) -> Ints:
        """The item of each unit, in the order of the inventory."""
        place = {name: i for i, names in enumerate(self.items) for name in names}
        return np.array([place[unit.name] for unit in self.inventory.units])

    @cached_property
    def untouched(self) -> Ints:
        """The choice that leaves the model as it is; tied units go by the first of them."""
        natives = {unit.name: unit.native for unit in self.inventory.units}
        return np.array([self.formats.index(natives[names[0]]) for names in self.items])

    @cached_property
    def units_of_item(self) -> Ints:
        """How many units each item has."""
        return np.array([len(names) for names in self.items])

    @cached_property
    def fixed_parameters(self) -> int:
        """Entries of the tensors that no plan touches."""
        return sum(prod(tensor.shape) for tensor in self.inventory.fixed)

    @cached_property
    def unreached(self) -> list[str]:
        """Units whose losses are all zero though they were measured with an error: the data never reached them."""
        report = self.report
        if report is None or report.stderr is None:
            return []
        return [report.units[u] for u in np.flatnonzero(~(np.nansum(report.loss, axis=1) > 0))]

    @cached_property
    def parts(self) -> dict[str, Ints]:
        """Bytes by part, each (items, formats); all of a float format are `native`."""
        shapes: dict[tuple[int, int], int] = {}
        at = [
            (item, shapes.setdefault(matrix.shape, len(shapes)))
            for item, unit in zip(self.item_of_unit.tolist(), self.inventory.units, strict=True)
            for matrix in unit.matrices
        ]
        of_shape = np.array([[_parts(name, shape) for name in self.formats] for shape in shapes], dtype=np.int64)
        sums = np.zeros((len(self.items), len(self.formats), len(PARTS)), dtype=np.int64)
        item, shape = np.array(at).T
        np.add.at(sums, item, of_shape[shape])
        return {part: np.ascontiguousarray(sums[:, :, k]) for k, part in enumerate(PARTS)}

    @cached_property
    def stored(self) -> Ints:
        """Bytes (items, formats), of what is not allowed too."""
        return np.asarray(sum(self.parts.values()))

    @cached_property
    def stderr(self) -> npt.NDArray[np.float64] | None:
        """Standard errors (units, formats), in the order of `items`; NaN where there is none."""
        if self.report is None or self.report.stderr is None:
            return None
        rows = {name: u for u, name in enumerate(self.report.units)}
        columns = {name: f for f, name in enumerate(self.report.formats)}
        table = np.full((sum(map(len, self.items)), len(self.formats)), np.nan)
        known = [j for j, name in enumerate(self.formats) if name in columns]
        taken = [rows[name] for names in self.items for name in names]
        table[:, known] = self.report.stderr[np.ix_(taken, [columns[self.formats[j]] for j in known])]
        return table


def lay_groundwork(inventory: Inventory, report: SensitivityReport | None, request: PlanRequest) -> Groundwork:
    """The groundwork of `request`, of whose limits only this counts: whether there is one on the latency, and on which device.

    Raises UsageError for pins that match nothing or cannot be, and for a latency of what has none.
    """
    target = TARGETS[request.target]
    formats = request.measured.palette(inventory)
    pins = _resolve_pins(inventory, request)
    groups: dict[str, list[Unit]] = {}
    for unit in inventory.units:
        groups.setdefault(target.tie(unit) or unit.name, []).append(unit)
    # Lists first: a table of numpy is slow to fill number by number.
    loss, cost, allowed = ([[start] * len(formats) for _ in groups] for start in (0.0, 0, True))
    chosen = [FORMATS[name] for name in formats]
    stored_bytes: dict[tuple[int, int], list[int]] = {}  # a model has few shapes
    measured = _Measured(report, formats)
    for i, units in enumerate(groups.values()):
        for unit in units:
            pinned, known = pins.get(unit.name), measured.losses(unit)
            for matrix in unit.matrices:
                counts = stored_bytes.get(matrix.shape)
                if counts is None:
                    counts = stored_bytes[matrix.shape] = [fmt.stored_bytes(matrix.shape) for fmt in chosen]
                cost[i] = [total + count for total, count in zip(cost[i], counts, strict=True)]
            for j, fmt in enumerate(chosen):
                # NaN, which is not equal to itself, marks what was not measured.
                if not (allowed[i][j] and known[j] == known[j] and pinned in (None, formats[j]) and target.admits(unit, fmt)):
                    allowed[i][j] = False
                loss[i][j] += known[j]
        if not any(allowed[i]):
            names = ", ".join(sorted({f"{unit.name}={pins[unit.name]}" for unit in units if unit.name in pins})) or units[0].name
            raise UsageError(
                f"no format is left for {names} on target {request.target}: tied units must agree and the target must admit "
                "the format; change the pins or the formats"
            )
    native = np.array([[all(unit.native == name for unit in units) for name in formats] for units in groups.values()])
    timing = None if request.latency_ms is None else time_items(inventory, groups.values(), formats, request.timed_on)
    costs = np.array([cost]) if timing is None else np.stack([np.array(cost), timing.nanoseconds])
    problem = ChoiceProblem(np.array(loss), costs, costs.max(axis=2).sum(axis=1), np.array(allowed, dtype=bool))
    items = tuple(tuple(unit.name for unit in units) for units in groups.values())
    return Groundwork(inventory, report, request.target, items, formats, pins, problem, native, timing)


class _Measured:
    """The report's losses by unit, in the order of `formats`."""

    def __init__(self, report: SensitivityReport | None, formats: tuple[str, ...]) -> None:
        self._formats = formats
        self._rows: dict[str, list[float]] | None = None
        if report is not None:
            columns = {name: f for f, name in enumerate(report.formats)}
            table = np.full((len(report.units), len(formats)), np.nan)
            for j, name in enumerate(formats):
                if name in columns:
                    table[:, j] = report.loss[:, columns[name]]
            self._rows = dict(zip(report.units, table.tolist(), strict=True))

    def losses(self, unit: Unit) -> list[float]:
        """Zero for the unit's own format; NaN for what was not measured."""
        if self._rows is None:
            return [0.0] * len(self._formats)
        row = self._rows.get(unit.name) or [float("nan")] * len(self._formats)
        return [0.0 if name == unit.native else value for name, value in zip(self._formats, row, strict=True)]


def _parts(name: str, shape: tuple[int, int]) -> list[int]:
    fmt = FORMATS[name]
    counts: dict[str, Any] = fmt.parts_bytes(shape)
    if fmt.family == "float":
        counts = {"native": sum(counts.values())}
    return [counts.get(part, 0) for part in PARTS]


def _resolve_pins(inventory: Inventory, request: PlanRequest) -> dict[str, str]:
    pins: dict[str, str] = {}
    for pattern, fmt in request.pins:
        matched = set(matching(pattern, [unit.name for unit in inventory.units]))
        if not matched:
            example = inventory.units[0].name
            raise UsageError(f"pin {pattern!r} matches no unit of {inventory.model_id}; names look like {example!r}")
        for unit in inventory.units:
            if unit.name in matched:
                pins[unit.name] = unit.native if fmt == "native" else fmt
    return pins
