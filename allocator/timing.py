"""How long a plan takes: nanoseconds of one decoding step at batch 1, for each item and format, and the least within a budget.

Counted are the products of every unit's matrices with one row of activations, one after the other, as `kernels/latency.py`
knows them for a device. An embedding is looked up, not multiplied, and costs nothing; a head that shares its parameter is a
product like any other. All experts are counted: an inventory does not say how many of them a token uses. Attention over
the cache, norms and what else no plan touches are not counted: no choice of formats changes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from math import ceil, floor

import numpy as np
import numpy.typing as npt

from ..kernels.formats import FORMATS, Format
from ..kernels.latency import Estimate, estimate
from ..kernels.latency_json import device_model
from ..kernels.roofline import DeviceModel
from ..sensitivity.units import Inventory, Unit
from ..solvers import SOLVERS
from ..solvers.problem import ChoiceProblem
from .errors import UsageError

NANO = 10**9
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Timing:
    """`nanoseconds` (items, formats), and where each of them is `known` from measured points; `untouched` is the time of the
    model in its own dtypes."""

    device: DeviceModel
    nanoseconds: Ints
    known: Bools
    untouched: int


@dataclass(frozen=True)
class Limit:
    """A limit in nanoseconds, and `minimum`, the least that could be met within the same bytes."""

    nanoseconds: int
    minimum: int


def time_items(inventory: Inventory, items: Iterable[Collection[Unit]], formats: tuple[str, ...], device: str) -> Timing:
    """The times of all items, each a group of units, in all formats; sums are rounded up to whole nanoseconds.

    Raises UsageError for a model that has no decoding step, KeyError for an unknown device.
    """
    if inventory.outputs != "tokens" or any(unit.kind == "conv" for unit in inventory.units):
        raise UsageError(
            f"--latency-ms counts one decoding step, and {inventory.model_id} ({inventory.family}) has none; leave it out"
        )
    model = device_model(device)

    @cache  # a model has few shapes
    def product(shape: tuple[int, int], fmt: Format) -> Estimate:
        return estimate(*shape, fmt.bits, 1, model, fmt.group_size)

    def nanoseconds(unit: Unit, fmt: Format) -> int:
        return ceil(_products(unit) * NANO * sum(product(matrix.shape, fmt).seconds for matrix in unit.matrices))

    def known(unit: Unit, fmt: Format) -> bool:
        found = (product(matrix.shape, fmt).kind for matrix in unit.matrices)
        return not _products(unit) or all(kind != "modelled" for kind in found)

    groups, chosen = list(items), [FORMATS[name] for name in formats]
    return Timing(
        model,
        np.array([[sum(nanoseconds(unit, fmt) for unit in units) for fmt in chosen] for units in groups], dtype=np.int64),
        np.array([[all(known(unit, fmt) for unit in units) for fmt in chosen] for units in groups], dtype=np.bool_),
        sum(nanoseconds(unit, FORMATS[unit.native]) for unit in inventory.units),
    )


def nanoseconds_of(milliseconds: float) -> int:
    """Whole nanoseconds in a limit as it was written.

    >>> nanoseconds_of(0.1), nanoseconds_of(0.0000019)
    (100000, 1)
    """
    return floor(Decimal(str(milliseconds)) * 10**6)


def least_time(timing: Timing, cost: Ints, limit: int, allowed: Bools) -> int:
    """The least nanoseconds of a choice of at most `limit` bytes; there is one. `cost` (items, formats) bytes."""
    problem = ChoiceProblem(timing.nanoseconds.astype(np.float64), cost[None], np.array([limit]), allowed)
    return int(SOLVERS["core"](problem).loss)


def _products(unit: Unit) -> int:
    """How often a token is multiplied by the unit's matrices: once for each use of them that is no look-up."""
    if unit.kind == "embedding":
        return sum(not _looks_up(name) for name in unit.shared_with)
    return 1 + len(unit.shared_with)


def _looks_up(name: str) -> bool:
    """Whether a further use of an embedding is one more table, by its name: `decoder.embed_tokens`, not `embed_out`."""
    last = name.rpartition(".")[2]
    return "embed" in last and last != "embed_out"
