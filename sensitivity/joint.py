"""What a whole plan loses to second order, the products of its units' errors included.

A plan's predicted loss is the sum of its units' losses, as if their errors were independent. They are not: errors of several
units move the output the same way, or against each other. With s_ur the slope of unit u's chosen format at row (or example) r,
as in `metrics/kl_fisher.py`,

    sum of losses   1/(2N) sum_r sum_u s_ur^2            joint   1/(2N) sum_r (sum_u s_ur)^2

the joint loss needs the slopes of one format a unit: a forward and a backward pass and little more. What is left between it
and the measured divergence is of higher order (few bits), or the covariance between positions, or other data. It predicts a
given plan; it is no objective for choosing one: over a few hundred rows a solver finds errors that cancel there and nowhere
else.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..kernels.float64 import sum64
from .estimate import Estimate, ratio_estimate
from .flow import DRAWS, drive_whole, seed_of
from .network import predictions, sampled_objective
from .probe import Rows, Use
from .report import Floats
from .slopes import use_slopes
from .study import Study


def joint_loss(study: Study, assignment: Mapping[str, str]) -> Estimate:
    """The second-order loss of storing all units in the formats of `assignment` (others in their own), with its standard error
    over batches: tables of shape (1, 1) in the units of the network's divergence. One step a batch and draw, named
    by these alone: `study.steps` that remember must be of this assignment."""
    network, part = study.network, study.data
    sums = []
    for index in range(len(part.batches)):
        study.progress("joint loss", index, len(part.batches))
        drawn = []
        for draw in range(DRAWS[network.inventory.outputs]):
            drawn.append(study.steps(f"joint, batch {index} draw {draw}", partial(_batch, study, assignment, index, draw)))
        sums.append(np.mean(drawn, axis=0))
    study.progress("joint loss", len(part.batches), len(part.batches))
    return ratio_estimate(sums, [predictions(network, batch) for batch in part.batches], network.quantity)


def _batch(study: Study, assignment: Mapping[str, str], index: int, draw: int) -> Floats:
    network, batch = study.network, study.data.batches[index]
    shape = next(iter(batch.values())).shape
    tokens = network.inventory.outputs == "tokens"
    slopes = torch.zeros(shape[0] * shape[1] if tokens else shape[0], device=network.device)

    def visit(use: Use, rows: Rows, g: Tensor) -> None:
        fmt = assignment.get(use.unit.name, use.unit.native)
        if fmt == use.unit.native:
            return
        weight = network.module.get_parameter(f"{use.module}.weight").detach().flatten(1)
        made = study.renderings(use.unit, fmt)[use.matrix]
        slope = use_slopes([made], weight, rows, g, None if tokens else shape[0])[0]
        slopes.index_add_(0, rows.position, slope) if tokens else slopes.add_(slope)

    drive_whole(network, sampled_objective, batch, study.data.classes(index), seed_of(study.seed, index, draw), visit)
    return np.array([[float(sum64(slopes.square())) / 2]])
