"""divergence_bisection: the measured divergence, unit by unit only where it matters.

For each format, each layer is stored in it as a whole and measured. The group with the largest loss is cut in two halves,
which are measured in turn, as long as that loss is

    a significant share   more than SHARE of the sum over all groups, and
    known                 more than twice its own standard error: halving what is lost in noise adds noise,

and the group has two units or more. What a group costs at the end is shared among its members by the energy of their
weight error, relative to that of the weights, times their number: D_u(f) x weights_u.

A group is worth the sum of its parts only where losses add up, which they do at many bits and do not at few. Each cut
tests it: the notes say how the halves compare with the whole. Where losses add up, fewer than 1 / SHARE groups are halved at
each level of halving, whatever the number of units: the runs of the data pay for themselves in layers of many units, such
as experts, and not in a small network. Ours; group testing is old.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..changes import weight_damage
from ..estimate import Estimate, empty_table, measured_pairs, ratio_estimate
from ..measured import make_bench, prediction_counts, summed_divergence
from ..report import Floats
from ..study import Study
from ..units import Unit
from .divergence_blocks import layers

SHARE = 0.05
STANDARD_ERRORS = 2.0


@dataclass(frozen=True, eq=False)
class Group:
    """Positions of units stored together, and the divergence of each batch (batches,)."""

    members: tuple[int, ...]
    sums: Floats


@dataclass(frozen=True, eq=False)
class Bisection:
    """Groups that together hold every unit; how many were measured to find them; and of each cut, halves over whole."""

    groups: tuple[Group, ...]
    runs: int
    additivity: tuple[float, ...]


def estimate(study: Study) -> Estimate:
    """The divergence of every unit and format, measured by groups."""
    units, formats, counts = study.units, study.formats, prediction_counts(study.network, study.data)
    weights = weight_damage(study)
    bench = make_bench(study)
    tables = np.stack([empty_table(units, formats)] * len(counts))
    roots = [_roots(units, fmt) for fmt in formats]
    done, total, found = 0, 2 * sum(map(len, roots)), []  # about as many runs: how many there will be is not known before
    study.progress("estimate", 0, total)
    for f, fmt in enumerate(formats):
        last = 2 * sum(map(len, roots[: f + 1]))

        def measure(members: tuple[int, ...], fmt: str = fmt, last: int = last) -> Group:
            nonlocal done
            pairs = [(units[u], fmt) for u in members]
            name = f"{pairs[0][0].name} to {pairs[-1][0].name} {fmt}"
            group = Group(members, study.steps(name, partial(bench.sums, summed_divergence, pairs)))
            if done < last:
                done += 1
                study.progress("estimate", done, total)
            return group

        found.append(bisect(roots[f], measure, counts))
        while done < last:
            done += 1
            study.progress("estimate", done, total)
        for group in found[-1].groups:
            inside = list(group.members)
            energy = weights[inside, f]
            shares = energy / energy.sum() if energy.any() else np.full(len(inside), 1 / len(inside))
            tables[:, inside, f] = group.sums[:, None] * shares
    alone = sum(len(measured_pairs(unit, formats)) for unit in units)
    return ratio_estimate(list(tables), counts, study.network.quantity, _notes(found, alone))


def _roots(units: Sequence[Unit], fmt: str) -> list[tuple[int, ...]]:
    """The units of each layer that are to be measured in `fmt`."""
    members = [tuple(u for u in layer if measured_pairs(units[u], [fmt])) for layer in layers(units)]
    return [layer for layer in members if layer]


def bisect(roots: Sequence[tuple[int, ...]], measure: Callable[[tuple[int, ...]], Group], counts: Sequence[int]) -> Bisection:
    """Measure `roots`, and halve the dearest group again and again while it is worth it."""
    groups = [measure(root) for root in roots]
    final: list[Group] = []
    additivity: list[float] = []
    runs = len(groups)
    while groups:
        groups.sort(key=lambda group: float(group.sums.sum()))
        dearest = groups.pop()
        everything = float(np.sum([group.sums for group in (*groups, *final, dearest)]))
        if len(dearest.members) == 1 or not worth_halving(dearest.sums, everything, counts):
            final.append(dearest)
            continue
        middle = len(dearest.members) // 2
        halves = [measure(dearest.members[:middle]), measure(dearest.members[middle:])]
        additivity.append(float(halves[0].sums.sum() + halves[1].sums.sum()) / float(dearest.sums.sum()))
        groups += halves
        runs += 2
    return Bisection(tuple(final), runs, tuple(additivity))


def worth_halving(sums: Floats, everything: float, counts: Sequence[int]) -> bool:
    """Whether a loss is a significant share of `everything`, a sum over the same batches, and known well enough."""
    if float(sums.sum()) <= SHARE * everything:
        return False
    known = ratio_estimate([each[None, None] for each in sums], counts, "")
    return known.stderr is None or float(known.loss[0, 0]) > STANDARD_ERRORS * float(known.stderr[0, 0])


def _notes(found: Sequence[Bisection], alone: int) -> tuple[str, ...]:
    runs = sum(bisection.runs for bisection in found)
    additivity = [ratio for bisection in found for ratio in bisection.additivity]
    first = f"{runs} runs of the data, where measuring each unit in each format takes {alone}"
    if not additivity:
        return (first,)
    low, middle, high = np.quantile(additivity, [0, 0.5, 1])
    span = f"{low:.2f} to {high:.2f} times the whole, median {middle:.2f}; 1 where losses add up"
    return (first, f"{len(additivity)} groups were halved, and their halves cost {span}")
