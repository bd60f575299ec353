"""delta_loss: the DeltaLoss of AutoRound's AutoScheme (0.16), restated exactly.

    score[u, f] = mean over batches of sum_ij |g_ij (W - Q_f(W))_ij|

g is the gradient of the task loss, averaged over the labels of the batch, at the quantized weight: for each format the model
runs with all units in that format throughout (those that do not admit it stay as they are). AutoRound adds batches up where
this takes their mean, so that it reads in nats; the terms of quantized activations, and the rules by hand for heads, embeddings
and experts that no token reached, are not part of the measurement. Absolute values are taken before the sum: it is a bound on
a first-order change, extensive in the size of a unit, that cannot see errors cancel. The uses of a tied weight share one
gradient; an expert's two matrices are added. Models without labels take a random direction of
the output, see `task_objective`.

Three copies of the weights, and one gradient of each, are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...kernels.float64 import sum64
from ..estimate import Estimate, empty_table, measured_pairs, ratio_estimate
from ..flow import scalar_of
from ..measured import stored
from ..network import Batch, Network, run
from ..render import unit_weights
from ..report import Floats
from ..study import Study
from ..task_loss import mean_task_loss, part_has_labels
from ..weight_gradients import differentiable


def estimate(study: Study) -> Estimate:
    """The scores, with standard errors over batches; one step a format and batch."""
    network, part, units, formats = study.network, study.data, study.units, study.formats
    tables = np.stack([empty_table(units, formats)] * len(part.batches))
    originals = [[weight.clone() for weight in unit_weights(network.module, unit)] for unit in units]
    wanted = {f: [u for u, unit in enumerate(units) if measured_pairs(unit, (fmt,))] for f, fmt in enumerate(formats)}
    wanted = {f: changed for f, changed in wanted.items() if changed}
    done, total = 0, len(wanted) * len(part.batches)
    for f, changed in wanted.items():
        with stored(network, study.renderings, [(units[u], formats[f]) for u in changed]):
            for index, batch in enumerate(part.batches):
                study.progress("estimate", done, total)
                labels = part.classes(index)
                compute = partial(_batch, network, originals, changed, batch, labels, study.seed + index)
                tables[index, changed, f] = study.steps(f"{formats[f]}, batch {index}", compute)
                done += 1
    study.progress("estimate", total, total)
    notes = () if part_has_labels(network, part) else ("there are no labels: a random direction of the output took their place",)
    return ratio_estimate(list(tables), [1] * len(part.batches), "sum of |gradient × change of the weight|, nats", notes)


def _batch(
    network: Network,
    originals: Sequence[Sequence[Tensor]],
    changed: Sequence[int],
    batch: Batch,
    labels: Tensor | None,
    seed: int,
) -> Floats:
    """sum |g (W - Q(W))| of each of the `changed` units, W in `originals`."""
    found = np.zeros(len(changed))
    with differentiable(network) as by_unit:
        loss = scalar_of(mean_task_loss, network, run(network, batch), batch, labels, seed)
        gradients = iter(torch.autograd.grad(loss, [w for u in changed for w in by_unit[u]], allow_unused=True))
    for k, u in enumerate(changed):
        for weight, before in zip(by_unit[u], originals[u], strict=True):
            gradient = next(gradients)
            if gradient is not None:  # an expert that no token reached has none
                found[k] += float(sum64((gradient.flatten(1) * (before - weight.flatten(1))).abs()))
    return found
