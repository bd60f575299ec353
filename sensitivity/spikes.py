"""Spikes: units that are fed a few inputs far larger than all others. No metric, but a reason to protect a unit.

    ratio = max |x| / quantile(|x|, 0.999)        over all entries of all rows that a unit is fed

In models of the LLaMA family the inputs of a few projections (`down` of an early and of a late layer) hold spikes of some
tokens, thousands of times what is usual. Keeping those units in a wide format lets the rest have few bits ("spike-aware" mixed
precision; the rule and the threshold of 20 are inferred by us from its abstract). Weights are all that is quantized here, so a
spike matters where activations will be quantized as well, and where a rounding error meets the one input that is not small.

Quantiles come from a histogram over the upper 16 bits of the float32 magnitudes, 32,768 counters a matrix whatever the number
of rows. Its bins are at most 0.8 % wide and the quantile is the upper edge of its bin, so the ratio is never too large.
Of fewer than 1000 entries the quantile is the largest, and nothing stands out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .calibration import Part
from .network import Network, run
from .probe import Rows, Use, watch_inputs
from .progress import Progress, silent

QUANTILE = 0.999
BINS = 1 << 15  # magnitudes have no sign bit: 8 bits of exponent and 7 of mantissa
THRESHOLD = 20.0


@dataclass(frozen=True)
class Spike:
    """The largest and the 0.999 quantile of the magnitudes that unit `unit` is fed; of several matrices, or uses, the one
    with the largest ratio."""

    unit: str
    largest: float
    quantile: float

    @property
    def ratio(self) -> float:
        """How far the largest stands out; infinite where nearly all inputs are zero, 0 where all are."""
        if self.quantile == 0:
            return math.inf if self.largest > 0 else 0.0
        return self.largest / self.quantile


@torch.no_grad()
def find_spikes(network: Network, part: Part, progress: Progress = silent) -> tuple[Spike, ...]:
    """One Spike for each unit that is fed anything but ids, in the order of the units."""
    units = network.inventory.units
    histograms: dict[tuple[str, str], Tensor] = {}
    largest: dict[tuple[str, str], float] = {}

    def visit(use: Use, rows: Rows) -> None:
        if rows.one_hot or not rows.x.numel():
            return
        key = (use.unit.name, use.module)
        magnitude = rows.x.abs().float().flatten()
        found = torch.bincount(magnitude.view(torch.int32) >> 16, minlength=BINS)
        histograms[key] = histograms[key] + found if key in histograms else found
        largest[key] = max(largest.get(key, 0.0), float(magnitude.max()))

    for index, batch in enumerate(part.batches):
        progress("spikes", index, len(part.batches))
        with watch_inputs(network, batch, units, visit):
            run(network, batch)
    progress("spikes", len(part.batches), len(part.batches))
    seen: dict[str, Spike] = {}
    for (unit, module), counted in histograms.items():
        spike = Spike(unit, largest[unit, module], min(largest[unit, module], upper_quantile(counted)))
        if unit not in seen or spike.ratio > seen[unit].ratio:
            seen[unit] = spike
    return tuple(seen[unit.name] for unit in units if unit.name in seen)


def protected(spikes: Sequence[Spike], threshold: float = THRESHOLD) -> tuple[str, ...]:
    """Names of the units whose ratio exceeds `threshold`."""
    return tuple(spike.unit for spike in spikes if spike.ratio > threshold)


def upper_quantile(counted: Tensor) -> float:
    """The 0.999 quantile of the magnitudes in the histogram `counted` (BINS,), rounded up to the next bin; 0 when it is 0."""
    rank = math.ceil(QUANTILE * int(counted.sum()))  # of the sorted magnitudes, counted from one
    at = int(torch.searchsorted(counted.cumsum(0), rank))
    edge = torch.tensor([(at + 1 << 16) - 1 if at else 0], dtype=torch.int32)
    return float(edge.view(torch.float32))
