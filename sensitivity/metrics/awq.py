"""awq: activation-aware weight error, (R / N) sum_ij (mean|x_j| dW_ij)^2 with dW = W_format - W.

mean|x_j| is the mean magnitude of input j over the R rows that the unit sees, N the number of predictions; R = N for the
linear layers of a language model. AWQ (Lin et al. 2023) takes mean|x_j| for what makes a weight salient and scales columns
by a power of it before rounding. It publishes no table of losses for units; weighing errors by the same magnitude is the
inference made here, and R / N puts experts that few tokens reach, and convolutions, on one scale with the others.

Against `wanda`, whose weight is mean x_j^2, an input that is large on a few rows only counts for less. An embedding's lookups
have one-hot inputs, whose mean magnitude is a frequency: they count the squared error of the rows they read.

The square of a mean is no sum over batches, so the magnitudes of each batch are kept (a vector a use) and the standard error
comes from leaving out batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...kernels.float64 import sum64
from ..changes import squared_output_error
from ..column_error import column_errors
from ..estimate import Estimate, empty_table, jackknife_estimate, measured_pairs
from ..network import predictions, run
from ..probe import Rows, Use, uses, watch_inputs
from ..render import unit_weights
from ..report import Floats
from ..study import Study
from ..units import Unit


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """What a use was given: `summed` (batches, parts, in) float64 is the sum of |x| and `rows` (batches,) how many there
    were; of lookups, the rows themselves, a list a batch."""

    summed: Tensor
    rows: Tensor
    lookups: tuple[list[Rows], ...]


def estimate(study: Study) -> Estimate:
    """The activation-aware weight error for every unit and format, standard errors by leaving out batches."""
    network, units, batches = study.network, study.units, study.data.batches
    total = len(batches) + len(units)
    seen: dict[str, Magnitudes] = {}

    def add(b: int, use: Use, rows: Rows) -> None:
        shape = (1, 1) if rows.one_hot else (len(rows.x), rows.x.shape[2])
        if use.module not in seen:
            nothing = torch.zeros(len(batches), *shape, dtype=torch.float64)
            seen[use.module] = Magnitudes(nothing, nothing[:, 0, 0].clone(), tuple([] for _ in batches))
        if rows.one_hot:
            seen[use.module].lookups[b].append(rows)
        else:
            seen[use.module].summed[b] += sum64(rows.x.abs(), 1).cpu()
            seen[use.module].rows[b] += rows.x.shape[1]

    for b, batch in enumerate(batches):
        study.progress("estimate", b, total)
        with torch.no_grad(), watch_inputs(network, batch, units, partial(add, b)):
            run(network, batch)
    counts = torch.tensor([predictions(network, batch) for batch in batches], dtype=torch.float64)
    kept = torch.ones(1, len(batches), dtype=torch.float64)
    if len(batches) > 1:
        kept = torch.cat([kept, 1 - torch.eye(len(batches), dtype=torch.float64)])  # all batches, then all but one
    tables = np.stack([empty_table(units, study.formats)] * len(kept))
    for u, unit in enumerate(units):
        study.progress("estimate", len(batches) + u, total)
        for f, fmt in measured_pairs(unit, study.formats):
            tables[:, u, f] = study.steps(f"{unit.name} {fmt}", partial(_one, study, unit, fmt, seen, kept, counts))
    study.progress("estimate", total, total)
    return jackknife_estimate(
        list(np.eye(len(batches))),
        lambda held: tables[0] if held.all() else tables[1 + int(held.argmin())],
        "squared weight error weighed by the mean magnitude of inputs",
    )


@torch.no_grad()
def _one(study: Study, unit: Unit, fmt: str, seen: dict[str, Magnitudes], kept: Tensor, counts: Tensor) -> Floats:
    """The loss of `unit` in `fmt` over each choice of batches in `kept` (choices, batches)."""
    losses = torch.zeros(len(kept), dtype=torch.float64)
    for use in uses(study.network, [unit]):
        if use.module not in seen:  # an expert that no token reached
            continue
        found, made = seen[use.module], study.renderings(unit, fmt)[use.matrix]
        weight = unit_weights(study.network.module, unit)[use.matrix]
        if any(found.lookups):
            read = [sum(squared_output_error(made, weight, rows) for rows in batch) for batch in found.lookups]
            losses += kept @ torch.tensor(read, dtype=torch.float64)
        else:
            magnitude = kept @ found.summed.flatten(1)  # (choices, parts * in)
            errors = column_errors(made, weight, found.summed.shape[1]).flatten().cpu()
            losses += magnitude.square() @ errors / (kept @ found.rows).clamp(min=1)
    result: Floats = (losses / (kept @ counts)).numpy()
    return result
