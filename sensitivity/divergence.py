"""divergence: the truth for single units. Each unit is put in each format, alone, and the output is compared.

The judge of the other metrics: one forward pass for each unit, format and batch, so it is slow. It measures KL(p || q) of
the model's distributions, or cosine distance of pooled vectors; see `network.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from .calibration import Part
from .estimate import Estimate, empty_table, measured_pairs, ratio_estimate
from .network import Batch, Network, divergence, predictions, run
from .progress import Progress, Steps
from .render import Renderings, rendered_transposed, unit_weights
from .report import Floats


def estimate(
    network: Network,
    renderings: Renderings,
    part: Part,
    formats: Sequence[str],
    seed: int,
    steps: Steps,
    progress: Progress,
) -> Estimate:
    """The measured divergence for every unit and format, with standard errors over batches."""
    units = network.inventory.units
    with torch.no_grad():
        references = [run(network, batch) for batch in part.batches]
    tables = np.stack([empty_table(units, formats)] * len(part.batches))
    for u, unit in enumerate(units):
        progress("estimate", u, len(units))
        for f, fmt in measured_pairs(unit, formats):
            tables[:, u, f] = steps(f"{unit.name} {fmt}", partial(_one, network, renderings, u, fmt, part.batches, references))
    progress("estimate", len(units), len(units))
    return ratio_estimate(list(tables), [predictions(network, batch) for batch in part.batches], network.quantity)


@torch.no_grad()
def _one(
    network: Network, renderings: Renderings, u: int, fmt: str, batches: Sequence[Batch], references: Sequence[torch.Tensor]
) -> Floats:
    """Summed divergence of each batch with unit `u` in `fmt`; the weights are put back whatever happens."""
    unit = network.inventory.units[u]
    weights = unit_weights(network.module, unit)  # views: writing to them changes the module
    kept = [weight.clone() for weight in weights]
    try:
        for weight, made in zip(weights, renderings(unit, fmt), strict=True):
            weight.copy_(rendered_transposed(made).T)
        return np.array(
            [
                float(divergence(network, reference, run(network, batch), batch).sum())
                for batch, reference in zip(batches, references, strict=True)
            ]
        )
    finally:
        for weight, old in zip(weights, kept, strict=True):
            weight.copy_(old)
