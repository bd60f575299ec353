"""noise_to_signal: the noise that a format adds to a unit's own output, relative to that output, both in energy.

    NSR = sum_r ||dW x_r||^2 / sum_r ||W x_r||^2        SQNR = -10 log10 NSR, in decibels

over the rows of the part, dW = W_format - W; biases carry no signal. The reciprocal of the signal to quantization noise
ratio by which many mixed-precision tools rank layers. It is `output_error` in units of each layer's own output: numbers of
different layers stand on one scale, but how much of the output's energy the model makes use of is still not known to it.

The uses of a tied weight, and the matrices of an expert, are added above and below the line. A ratio of two sums is no sum
over batches: its standard error comes from leaving out one batch after another.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..changes import squared_output_error
from ..estimate import Estimate, empty_table, jackknife_estimate, measured_pairs
from ..flow import Passage, drive_whole
from ..probe import Rows, Use
from ..report import Floats
from ..study import Study


def estimate(study: Study) -> Estimate:
    """NSR for every unit and format, with standard errors over batches; one step a batch."""
    network, part = study.network, study.data
    sums = []
    for index, batch in enumerate(part.batches):
        study.progress("estimate", index, len(part.batches))
        drive = partial(drive_whole, network, None, batch, None, study.seed)
        passage = Passage(network, study.renderings, study.units, study.formats, batch, drive)
        sums.append(study.steps(f"batch {index}", partial(noise_and_signal, passage)))
    study.progress("estimate", len(part.batches), len(part.batches))
    return jackknife_estimate(sums, ratio, "noise to signal of the unit's output")


def decibels(noise_to_signal: float) -> float:
    """SQNR of a noise to signal ratio above zero.

    >>> decibels(0.01)
    20.0
    """
    return float(-10 * np.log10(noise_to_signal))


def noise_and_signal(passage: Passage) -> Floats:
    """sum ||dW x||^2 and sum ||W x||^2 of one batch, (2, units, formats); the latter is the same for all formats."""
    position = {unit.name: u for u, unit in enumerate(passage.units)}
    noise = empty_table(passage.units, passage.formats)
    signal = np.zeros_like(noise)

    def visit(use: Use, rows: Rows, g: Tensor) -> None:
        weight = passage.network.module.get_parameter(f"{use.module}.weight").flatten(1)
        signal[position[use.unit.name]] += squared_output_error(torch.zeros_like(weight), weight, rows)
        for f, fmt in measured_pairs(use.unit, passage.formats):
            noise[position[use.unit.name], f] += squared_output_error(passage.renderings(use.unit, fmt)[use.matrix], weight, rows)

    passage.drive(visit)
    return np.stack([noise, signal])


def ratio(sums: Floats) -> Floats:
    """Noise over signal, zero where there is none."""
    noise, signal = sums
    return np.where(np.isnan(noise), np.nan, np.divide(noise, signal, out=np.zeros_like(noise), where=signal > 0))
