"""How long a plan takes: nanoseconds of one decoding step at batch 1, for each item and format, and the least within a budget.

Counted are the products of every unit's matrices with one row of activations, one after the other, as `kernels/latency.py`
knows them for a device. An embedding is looked up, not multiplied, and costs nothing; a head that shares its parameter is a
product like any other. Of a layer's E experts a token uses k: each counts k / E of its time, as if all were chosen equally
often; where the inventory does not know k, all count in full. Attention over the cache, norms and what else no plan touches
are not counted: no choice of formats changes them. Every unit's time is rounded up to whole nanoseconds, an expert's after
the k / E, so that no sum is below the time it stands for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
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
    """The times of all items, each a group of units, in all formats.

    Raises UsageError for a model that has no decoding step, KeyError for an unknown device.
    """
    if inventory.outputs != "tokens" or any(unit.kind == "conv" for unit in inventory.units):
        raise UsageError(
            f"--latency-ms counts one decoding step, and {inventory.model_id} ({inventory.family}) has none; leave it out"
        )
    model, shares = device_model(device), _shares(inventory)

    @cache  # a model has few shapes
    def product(shape: tuple[int, int], fmt: Format) -> Estimate:
        return estimate(*shape, fmt.bits, 1, model, fmt.group_size)

    def nanoseconds(unit: Unit, fmt: Format) -> int:
        return ceil(_products(unit, shares) * NANO * sum(product(matrix.shape, fmt).seconds for matrix in unit.matrices))

    def known(unit: Unit, fmt: Format) -> bool:
        found = (product(matrix.shape, fmt).kind for matrix in unit.matrices)
        return not _products(unit, shares) or all(kind != "modelled" for kind in found)

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


def latency_notes(inventory: Inventory, timing: Timing) -> list[str]:
    """What a reader of a plan must know of its latency."""
    notes = []
    if not timing.device.measured:
        notes.append(
            f"nothing has been measured on {timing.device.name} yet: its latencies follow from constants that are guesses; "
            "measure before you rely on them"
        )
    used, crowds = inventory.experts_used, set(_experts(inventory).values())
    if crowds and used is None:
        notes.append("the latency counts all experts, as the inventory does not say how many a token uses; a token takes less")
    elif used is not None and crowds:
        share = " or ".join(f"{min(used, crowd)}/{crowd}" for crowd in sorted(crowds))
        notes.append(
            f"the latency counts {share} of the time of each expert, as a token is sent to that many; it is that of a token "
            "whose experts are as fast as their layer's on average"
        )
    return notes


def _experts(inventory: Inventory) -> Counter[str]:
    """How many experts each block has, by the block's name: `...mlp.experts` of `...mlp.experts.7`."""
    units = (unit for unit in inventory.units if unit.kind == "expert")
    return Counter(name.rpartition(".")[0] for unit in units for name in (unit.name, *unit.shared_with))


def _shares(inventory: Inventory) -> dict[str, Fraction]:
    """The share of each block's experts that a token uses; one where it is not known."""
    used = inventory.experts_used
    crowds = _experts(inventory).items()
    return {name: Fraction(1) if used is None else Fraction(min(used, crowd), crowd) for name, crowd in crowds}


def _products(unit: Unit, shares: dict[str, Fraction]) -> int | Fraction:
    """How often a token is multiplied by the unit's matrices: once for each use of them that is no look-up, on average."""
    if unit.kind == "expert":
        return sum((shares[name.rpartition(".")[0]] for name in (unit.name, *unit.shared_with)), Fraction(0))
    if unit.kind == "embedding":
        return sum(not _looks_up(name) for name in unit.shared_with)
    return 1 + len(unit.shared_with)


def _looks_up(name: str) -> bool:
    """Whether a further use of an embedding is one more table, by its name: `decoder.embed_tokens`, not `embed_out`."""
    last = name.rpartition(".")[2]
    return "embed" in last and last != "embed_out"
