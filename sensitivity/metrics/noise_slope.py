"""noise_slope: how steeply the divergence of the output rises with Gaussian noise on a unit's weights, times relative error.

    W_t = W + sqrt(t) ||W|| n / ||n||, n ~ N(0, I)      a_u = sum_t t KL_u(t) / sum_t t^2      loss = a_u ||dW||^2 / ||W||^2

for every matrix of the unit at once, KL the network's own divergence: the slope through the origin of the divergence against
the relative power t of the noise. Q-Palette (NeurIPS 2025, arXiv 2509.20214) chooses quantizers by a_u D, D the relative error
of the quantizer; it reports 16 measured divergences a layer and has not released how they are made: the recipe is inferred
by us (t from 0.01 to 0.1, slope through the origin, R^2 above 0.95).

Cost: one forward pass for each unit, level and batch. Here 4 levels on at most 4 batches make the 16 that were reported. The
noise has no direction: GPTQ's errors, which its inputs make small, cost less than the slope says, and a table of another
width is as exact as the line is straight, which the notes report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..calibration import Part
from ..changes import relative_errors
from ..estimate import Estimate, ratio_estimate
from ..network import Network, divergence, predictions, run
from ..render import unit_weights
from ..report import Floats
from ..study import Study
from ..units import Unit

LEVELS = (0.01, 0.04, 0.07, 0.1)  # t
BATCHES = 4
STRAIGHT = 0.95  # R^2


def estimate(study: Study) -> Estimate:
    """a_u D for every unit and format, standard errors over the batches used; one step a unit and level."""
    network, units = study.network, study.units
    chosen = Part(study.data.batches[:BATCHES], study.data.digests)
    with torch.no_grad():
        references = [run(network, batch) for batch in chosen.batches]
    measured = np.zeros((len(units), len(LEVELS), len(chosen.batches)))
    for u, unit in enumerate(units):
        study.progress("estimate", u, len(units))
        for index, level in enumerate(LEVELS):
            generator = torch.Generator().manual_seed(study.seed * 1_000_003 + u * len(LEVELS) + index)
            compute = partial(_noisy, network, unit, level, generator, chosen, references)
            measured[u, index] = study.steps(f"{unit.name} noise {level}", compute)
    counts = [predictions(network, batch) for batch in chosen.batches]
    relative = relative_errors(study)
    sums = [slopes(measured[:, :, b])[:, None] * relative for b in range(len(counts))]
    bent = int((straightness(measured.sum(axis=2)) < STRAIGHT).sum())
    note = f"the divergence of {bent} of {len(units)} units does not rise in proportion to noise (R^2 below {STRAIGHT})"
    study.progress("estimate", len(units), len(units))
    return ratio_estimate(sums, counts, network.quantity, (note,) if bent else ())


def slopes(divergences: Floats) -> Floats:
    """a through the origin of `divergences` (..., levels) at LEVELS."""
    t = np.array(LEVELS)
    found: Floats = (divergences @ t) / (t @ t)
    return found


def straightness(divergences: Floats) -> Floats:
    """R^2 of the line a t through `divergences` (..., levels), 1 where they are all equal to it."""
    residual = np.square(divergences - slopes(divergences)[..., None] * np.array(LEVELS)).sum(axis=-1)
    spread = np.square(divergences - divergences.mean(axis=-1, keepdims=True)).sum(axis=-1)
    found: Floats = 1 - residual / np.maximum(spread, np.finfo(np.float64).tiny)
    return found


@torch.no_grad()
def _noisy(
    network: Network, unit: Unit, level: float, generator: torch.Generator, part: Part, references: Sequence[Tensor]
) -> Floats:
    """Summed divergence of each batch with noise of relative power `level` on the weights of `unit`."""
    with noise(network, unit, level, generator):
        return np.array(
            [
                float(divergence(network, reference, run(network, batch), batch).sum())
                for batch, reference in zip(part.batches, references, strict=True)
            ]
        )


@contextmanager
def noise(network: Network, unit: Unit, level: float, generator: torch.Generator) -> Iterator[None]:
    """While open, every matrix of `unit` has Gaussian noise of exactly `level` times its own squared norm added to it."""
    weights = unit_weights(network.module, unit)  # views: writing to them changes the module
    kept = [weight.clone() for weight in weights]
    try:
        for weight in weights:
            drawn = torch.randn(weight.shape, generator=generator).to(weight.device)
            weight.add_(drawn.mul_(level**0.5 * weight.norm() / drawn.norm()))
        yield
    finally:
        for weight, old in zip(weights, kept, strict=True):
            weight.copy_(old)
