"""sibling: the table of a large model from the measured one of a small model of the same family.

Models of one family, trained alike and of different size, are sensitive in like places. Each unit takes the losses of the
sibling's units of its role, at its relative depth:

    depth of a layer         its place among the layers that hold the role, from 0 for the first to 1 for the last
    loss at a depth          linear between the two nearest of the sibling's layers; several units of a role in one layer
                             (experts) count as their mean, and so do those outside the layers (embedding, head)
    scale                    the sibling's units of the role over the model's: a role as a whole is as sensitive,
                             however many layers and experts share it
    tied head                an embedding that is the head as well costs what embedding and head cost; where only the
                             sibling's is tied, embedding and head cost each what that costs
    formats                  one that the sibling was not measured in is interpolated between those it was, in the logarithm
                             of the loss over the stored bits of a weight; a model's own dtype costs nothing

The rule is ours. Nothing of the large model is looked at but its inventory: neither its weights nor any data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..kernels.formats import FORMATS
from .estimate import Estimate, empty_table, measured_pairs
from .report import Floats, SensitivityReport
from .units import Inventory, Unit

Place = tuple[str, bool]  # a role, and whether inside a layer
EMBEDDING, HEAD = ("embedding", False), ("head", False)


def from_sibling(
    inventory: Inventory, formats: Sequence[str], report: SensitivityReport, sibling_inventory: Inventory
) -> Estimate:
    """A guess of what the sibling's metric would have found for `inventory`; no sampling error is known.

    Raises ValueError when the report is not the sibling's, when the models give different kinds of outputs, when the sibling
    has no unit of some role, or when it has no loss in one of `formats` and none can be interpolated.
    """
    model, sibling = inventory.model_id, sibling_inventory.model_id
    if report.inventory_fingerprint != sibling_inventory.fingerprint:
        raise ValueError(f"report {report.id} is not one of {sibling}")
    if inventory.outputs != sibling_inventory.outputs:
        raise ValueError(f"{model} gives {inventory.outputs} and its sibling {sibling} gives {sibling_inventory.outputs}")
    units, siblings = inventory.units, sibling_inventory.units
    pairs = [measured_pairs(unit, formats) for unit in units]
    losses = np.zeros((len(siblings), len(formats)))
    for f in sorted({f for each in pairs for f, _ in each}):
        losses[:, f] = in_format(report, siblings, formats[f])
    table, there = empty_table(units, formats), _places(siblings)
    for place, members in _places(units).items():
        for source in _sources(place, [units[u] for u in members], there, siblings):
            found = _at_depths(_depths(units, members), siblings, there[source], losses)
            for u, row in zip(members, found * len(there[source]) / len(members), strict=True):
                for f, fmt in pairs[u]:
                    if np.isnan(row[f]):
                        raise ValueError(f"the sibling {sibling} does not admit {fmt} for the role {place[0]}; leave it out")
                    table[u, f] += row[f]
    note = f"no data was used: the losses are those of {sibling} ({report.metric}), carried over by role and relative depth"
    return Estimate(table, None, 0, f"{report.quantity}, as of its sibling {sibling}", (*report.notes, note))


def in_format(report: SensitivityReport, units: Sequence[Unit], fmt: str) -> Floats:
    """The report's losses of its `units` in `fmt`, (units,), interpolated where it was not measured; NaN where a unit does
    not admit it.

    Raises ValueError for a format that cannot be interpolated: a float, or more or fewer bits than were measured.
    """
    rows = [report.units.index(unit.name) for unit in units]
    if fmt in report.formats:
        return report.loss[rows, report.formats.index(fmt)]
    known = [f for f, name in enumerate(report.formats) if FORMATS[name].family == "int"]
    found = []
    for row, unit in zip(rows, units, strict=True):
        bits, wanted = np.array([_bits(unit, report.formats[f]) for f in known]), _bits(unit, fmt)
        if FORMATS[fmt].family != "int" or not known or not bits.min() <= wanted <= bits.max():
            raise ValueError(f"no loss in {fmt} follows from the sibling's in {', '.join(report.formats)}; leave it out")
        found.append(interpolate(wanted, bits, report.loss[row, known]))
    return np.array(found)


def interpolate(wanted: float, bits: Floats, losses: Floats) -> float:
    """The loss at `wanted` bits: linear in its logarithm between the nearest of `bits` around it, or, where one of these is
    zero, in the loss itself."""
    low = max(np.flatnonzero(bits <= wanted), key=lambda i: bits[i])
    high = min(np.flatnonzero(bits >= wanted), key=lambda i: bits[i])
    share = (wanted - bits[low]) / (bits[high] - bits[low]) if bits[high] > bits[low] else 0.0
    if losses[low] > 0 and losses[high] > 0:
        return float(losses[low] ** (1 - share) * losses[high] ** share)
    return float(losses[low] * (1 - share) + losses[high] * share)


def _bits(unit: Unit, fmt: str) -> float:
    """Stored bits a weight."""
    return 8 * unit.stored_bytes(FORMATS[fmt]) / unit.parameters


def _places(units: Sequence[Unit]) -> dict[Place, list[int]]:
    """The positions of the units of each place."""
    found: dict[Place, list[int]] = {}
    for u, unit in enumerate(units):
        found.setdefault((unit.role, unit.layer is not None), []).append(u)
    return found


def _sources(place: Place, members: Sequence[Unit], there: dict[Place, list[int]], siblings: Sequence[Unit]) -> list[Place]:
    """The sibling's places whose losses add up to those of `place`. Raises ValueError when there is none."""
    tied = EMBEDDING in there and bool(siblings[there[EMBEDDING][0]].shared_with)
    if place == EMBEDDING and members[0].shared_with and not tied and {EMBEDDING, HEAD} <= there.keys():
        return [EMBEDDING, HEAD]
    if place == HEAD and place not in there and tied:
        return [EMBEDDING]
    if place not in there:
        raise ValueError(f"{members[0].name}: the sibling has no unit of the role {place[0]} to take losses from")
    return [place]


def _depths(units: Sequence[Unit], members: Sequence[int]) -> Floats:
    """The relative depth of each of `members` among the layers that hold one."""
    layers = sorted({units[u].layer or 0 for u in members})
    return np.array([layers.index(units[u].layer or 0) / max(1, len(layers) - 1) for u in members])


def _at_depths(wanted: Floats, siblings: Sequence[Unit], members: Sequence[int], losses: Floats) -> Floats:
    """The losses (siblings, formats) of `members` at the depths `wanted`, (wanted, formats)."""
    depths = _depths(siblings, members)
    known = np.unique(depths)
    means = np.stack([losses[members][depths == depth].mean(axis=0) for depth in known])
    return np.stack([np.interp(wanted, known, column) for column in means.T], axis=1)
