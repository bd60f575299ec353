"""divergence_blocks: the measured divergence from fewer runs, by way of layers.

Each unit is measured alone in one format, f0, and each layer, all its units together, in every format. With s_u what unit u
costs alone in f0, L_f what its layer costs in f, D the relative weight error (`relative_error.py`),

    loss[u, f0] = s_u
    loss[u, f]  = L_f w_uf / sum over the layer of w_uf,    w_uf = s_u D_u(f) / D_u(f0)

The layer says how the loss grows from format to format, D how the growth of one member differs from that of another. f0 is
the format of fewest bits, where errors are largest and a layer is furthest from the sum of its members; elsewhere their
losses are taken to add up. Units in no layer, and single ones, are measured in every format: units + layers x formats runs
of the data instead of units x formats. Ours; that whole blocks are measured is an old economy (ExLlamaV2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ...kernels.formats import FORMATS
from ..blocks import blocks
from ..changes import relative_errors
from ..estimate import Estimate, empty_table, jackknife_estimate, measured_pairs
from ..measured import make_bench, prediction_counts, summed_divergence
from ..report import Floats
from ..study import Study
from ..units import Unit


@dataclass(frozen=True)
class Group:
    """Units measured together. `base` is the column of the one format in which each is measured alone; None when each is
    measured alone in all of them, and never together."""

    members: tuple[int, ...]
    base: int | None


@dataclass(frozen=True)
class Measurement:
    """`members` stored in format number `column`, all at once."""

    members: tuple[int, ...]
    column: int


def estimate(study: Study) -> Estimate:
    """The divergence of every unit and format, measured by layers."""
    units, formats = study.units, study.formats
    groups = [_group(units, members, formats) for members in layers(units)]
    plan = [measurement for group in groups for measurement in schedule(group, units, formats)]
    relative, bench = relative_errors(study), make_bench(study)
    found = []
    for done, measurement in enumerate(plan):
        study.progress("estimate", done, len(plan))
        pairs = [(units[u], formats[measurement.column]) for u in measurement.members]
        name = f"{pairs[0][0].name} to {pairs[-1][0].name} {pairs[0][1]}"
        found.append(study.steps(name, partial(bench.sums, summed_divergence, pairs)))
    study.progress("estimate", len(plan), len(plan))
    counts = np.array(prediction_counts(study.network, study.data), dtype=np.float64)

    def table(total: Floats) -> Floats:
        losses = dict(zip(plan, total[:-1] / total[-1], strict=True))
        result = empty_table(units, formats)
        for group in groups:
            fill(result, group, losses, relative, units, formats)
        return result

    alone = sum(len(measured_pairs(unit, formats)) for unit in units)
    note = f"{len(plan)} runs of the data, where measuring each unit in each format takes {alone}"
    return jackknife_estimate([*np.stack([*found, counts], axis=1)], table, study.network.quantity, (note,))


def layers(units: Sequence[Unit]) -> list[tuple[int, ...]]:
    """Positions of the units of each layer; a unit in no layer is alone."""
    inside = [tuple(members) for members in blocks(units).values()]
    held = {u for members in inside for u in members}
    return sorted([*inside, *((u,) for u in range(len(units)) if u not in held)])


def _group(units: Sequence[Unit], members: tuple[int, ...], formats: Sequence[str]) -> Group:
    """The format for measuring alone: that of fewest bits of those that all members can be measured in."""
    shared = set(range(len(formats)))
    for u in members:
        shared &= {f for f, _ in measured_pairs(units[u], formats)}
    fewest = min(shared, key=lambda f: (FORMATS[formats[f]].bits, f), default=None)
    return Group(members, None if len(members) == 1 else fewest)


def schedule(group: Group, units: Sequence[Unit], formats: Sequence[str]) -> list[Measurement]:
    """What is to be measured for `group`."""
    columns = {u: [f for f, _ in measured_pairs(units[u], formats)] for u in group.members}
    if group.base is None:
        return [Measurement((u,), f) for u in group.members for f in columns[u]]
    others = sorted({f for each in columns.values() for f in each} - {group.base})
    alone = [Measurement((u,), group.base) for u in group.members]
    return [*alone, *(Measurement(tuple(u for u in group.members if f in columns[u]), f) for f in others)]


def fill(
    result: Floats,
    group: Group,
    losses: dict[Measurement, float],
    relative: Floats,
    units: Sequence[Unit],
    formats: Sequence[str],
) -> None:
    """Write the group's losses to `result` (units, formats), by the formula above."""
    for measurement in schedule(group, units, formats):
        members, f, loss = list(measurement.members), measurement.column, losses[measurement]
        if len(members) == 1:
            result[members[0], f] = loss
        elif group.base is not None:
            before, after = relative[members, group.base], relative[members, f]
            growth = np.divide(after, before, out=np.zeros(len(members)), where=before > 0)
            shares = growth * [losses[Measurement((u,), group.base)] for u in members]
            if not shares.any():  # nothing to go by but the weights
                shares = after * [units[u].parameters for u in members]
            result[members, f] = loss * shares / shares.sum() if shares.any() else 0.0
