"""kfac: kl_fisher with inputs and gradients taken to be independent (K-FAC, 2015; for convolutions KFC, 2016).

    loss[u, f] = 1/(2N) * 1/R * tr(G dW A dW^T),   A = sum_r x_r x_r^T,  G = sum_r g_r g_r^T

over the R rows of the unit, N counting predictions, g_r the gradient at the unit's output of a random projection of the model's
(`sampled_objective`). Where x and g are independent (every x met with every g) it equals 1/(2N) sum_r (g_r^T dW x_r)^2, the form
by tokens of `kl_fisher.py`. What it buys is a mean over R^2 pairs of an input and a gradient in place of R. It never sees the
covariance between positions; where an example has one output, that can put it off by a factor of several, either way. Uses of a
tied weight, matrices of an expert and groups of a convolution are added, their products dropped. The A of an embedding lookup is
diagonal: how often each id was read.

A is collected in a forward pass over the part and shared by the modules that receive the same tensor; G is never formed (the
head of a language model would have one of vocabulary x vocabulary), as tr(G dW A dW^T) = sum_r |dW^T g_r|_A^2 adds up row by row
in a second pass. The As of at most CACHE_BYTES are held at a time, or of one layer where that needs more: units are taken in
chunks of whole layers, and each chunk has its own two passes.

Standard errors leave out one batch after another. The gradients' side of a batch is left out exactly; leaving it out of A is
taken to shrink A by its share of sum |x|^2, the direction of A being held fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from ...kernels.float64 import sum64
from ..calibration import Part
from ..changes import part_changes, row_changes
from ..estimate import Estimate, empty_table, jackknife_estimate, measured_pairs
from ..flow import drive_whole
from ..moments import Moments, adding_to
from ..network import Network, predictions, run, sampled_objective
from ..probe import Rows, Use, uses, watch_inputs
from ..render import Rendered
from ..report import Floats
from ..study import Study
from ..units import Unit

CACHE_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Factors:
    """The A of each module as (parts, in, in), or the counts of an embedding's ids, and the rows R behind it."""

    moments: Moments
    others: dict[str, Tensor]  # what `moments` leaves out: grouped convolutions and lookups
    rows: dict[str, int]

    def __getitem__(self, module: str) -> Tensor:
        shared = self.moments.site.get(module)
        return self.others[module] if shared is None else self.moments.second[shared][None]


def estimate(study: Study) -> Estimate:
    """The loss table with standard errors by leaving out batches; one step a chunk and batch."""
    network, part = study.network, study.data
    parts = chunks(network)
    found: list[list[Floats]] = [[] for _ in part.batches]
    done, total = 0, len(parts) * len(part.batches)
    for units in parts:
        chunk = replace(study, network=replace(network, inventory=replace(network.inventory, units=units)))
        factors = cache(partial(input_factors, chunk.network, part))  # not collected where every step is known already
        for index in range(len(part.batches)):
            study.progress("estimate", done, total)
            compute = partial(_batch, chunk, index, factors)
            found[index].append(study.steps(f"{units[0].name} to {units[-1].name}, batch {index}", compute))
            done += 1
    study.progress("estimate", total, total)
    counts = [predictions(network, batch) for batch in part.batches]
    sums = [np.pad(np.concatenate(some), ((0, 0), (0, 1)), constant_values=n) for some, n in zip(found, counts, strict=True)]
    return jackknife_estimate(sums, partial(_table, network, study.formats, np.sum(sums, axis=0)), network.quantity)


def chunks(network: Network) -> list[tuple[Unit, ...]]:
    """Consecutive units, whole layers, whose As take at most CACHE_BYTES; a layer that takes more is a chunk by itself."""
    result: list[tuple[Unit, ...]] = []
    held = 0
    for _, layer in groupby(network.inventory.units, key=lambda unit: unit.layer):
        units = tuple(layer)
        size = sum(_bytes(network, use) for use in uses(network, units))
        if result and held + size <= CACHE_BYTES:
            result[-1] += units
            held += size
        else:
            result.append(units)
            held = size
    return result


def _bytes(network: Network, use: Use) -> int:
    """What the A of a use takes when it is shared with no other."""
    module = network.module.get_submodule(use.module)
    if isinstance(module, torch.nn.Embedding):
        return 4 * module.num_embeddings
    inputs = use.unit.matrices[use.matrix].shape[1]
    return 4 * int(getattr(module, "groups", 1)) * inputs * inputs


@torch.no_grad()
def input_factors(network: Network, part: Part) -> Factors:
    """A and R of every module of the network's units, over all of `part`."""
    factors = Factors(Moments({}, {}), {}, {})
    for batch in part.batches:
        with watch_inputs(network, batch, network.inventory.units, _adding_to(factors, network)):
            run(network, batch)
    return factors


def _adding_to(factors: Factors, network: Network) -> Callable[[Use, Rows], None]:
    """What to call at every use while one batch flows by."""
    add_moments = adding_to(factors.moments, network)

    def visit(use: Use, rows: Rows) -> None:
        factors.rows[use.module] = factors.rows.get(use.module, 0) + len(rows.example)
        if rows.one_hot:
            mine = torch.bincount(rows.x, minlength=use.unit.matrices[use.matrix].shape[0]).float()
        elif len(rows.x) > 1:
            mine = rows.x.transpose(1, 2) @ rows.x
        else:
            add_moments(use, rows)
            return
        factors.others[use.module] = factors.others[use.module] + mine if use.module in factors.others else mine

    return visit


def _batch(study: Study, index: int, factors: Callable[[], Factors]) -> Floats:
    """For every use, one batch's share of tr(G dW A dW^T) / R in each format, its sum |x|^2 and its rows: (uses, formats + 2)."""
    network, part, formats, known = study.network, study.data, study.formats, factors()
    position = {(use.module, use.matrix): k for k, use in enumerate(uses(network, study.units))}
    table = np.zeros((len(position), len(formats) + 2))

    def visit(use: Use, rows: Rows, g: Tensor) -> None:
        weight = network.module.get_parameter(f"{use.module}.weight").flatten(1)
        second = known[use.module]
        mine = table[position[use.module, use.matrix]]
        mine[-2] += float(len(rows.x)) if rows.one_hot else float(sum64(rows.x.square()))
        mine[-1] += len(rows.example)
        for f, fmt in measured_pairs(use.unit, formats):
            made = study.renderings(use.unit, fmt)[use.matrix]
            mine[f] += squared_lengths(made, weight, second, rows, g) / known.rows[use.module]

    labels = part.classes(index)
    drive_whole(network, sampled_objective, part.batches[index], labels, study.seed + index, visit)
    return table


def squared_lengths(made: Rendered, weight: Tensor, second: Tensor, rows: Rows, g: Tensor) -> float:
    """sum_r g_r^T dW A dW^T g_r, A = `second`."""
    if rows.one_hot:
        ids = torch.nonzero(second)[:, 0]
        change = row_changes(made, weight, ids)
        moved, metric = g, (change.T @ (second[ids, None] * change))[None]  # the lookup's dW A dW^T: (width, width)
    else:
        moved, metric = torch.zeros_like(rows.x), second
        for part, outputs, delta in part_changes(made, weight, len(g)):
            moved[part] += g[part][:, outputs] @ delta.T
    return float(sum64((moved @ metric) * moved))


def _table(network: Network, formats: Sequence[str], whole: Floats, total: Floats) -> Floats:
    """The losses from summed statistics (uses, formats + 3): those of `_batch` and N. `whole` is the sum over all batches."""
    units = network.inventory.units
    table = empty_table(units, formats)
    owner = [u for u, unit in enumerate(units) for _ in uses(network, [unit])]
    with np.errstate(divide="ignore", invalid="ignore"):
        energy = (total[:, -3] / total[:, -2]) / (whole[:, -3] / whole[:, -2])  # what is left of the mean |x|^2
    energy[~np.isfinite(energy)] = 0  # no rows
    np.add.at(table, owner, total[:, :-3] * (energy / (2 * total[:, -1]))[:, None])
    return table
