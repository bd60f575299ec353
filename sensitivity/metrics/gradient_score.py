"""gradient_score: the gradient method of NVIDIA Model Optimizer's auto_quantize (0.47), restated exactly.

    score[u, f] = sum over batches, rows r and outputs i of min((g_ri (dW x_r)_i)^2, 1e10)

g is the gradient at the unit's output of the task loss averaged over the labels of its batch, dW x the change of that output
when only this unit is quantized and fed what it is fed now. Then, from few bits to many, each score becomes at most the one
before. It is the diagonal of an empirical Fisher information in the space of outputs: products of different outputs of a row
are dropped where kl_fisher keeps them, and so are those of different rows, of the uses of a tied weight, and of the matrices of
an expert.

The scale is arbitrary. As the loss is a mean over the n labels of a batch, g is 1/n of that of a sum, and the score of a part of
B batches goes like B/n; half of n^2 times the score, over the predictions of the part, would be nats if outputs did not interact.
Formats are in the order of their bits, those of equal bits in the order of their bytes. That program also scores layers
together which its engines fuse (q, k and v; all experts at the output of their layer): such rules are ties of a target, not
part of the measurement. Models without labels take a random direction of the output, see `task_objective`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from torch import Tensor

from ...kernels.float64 import sum64
from ...kernels.formats import FORMATS
from ..changes import part_changes, row_changes
from ..estimate import Estimate, empty_table, measured_pairs
from ..flow import Flow, Passage, estimate_flow
from ..network import predictions
from ..probe import Rows, Use
from ..render import Rendered
from ..report import Floats
from ..study import Study
from ..task_loss import mean_task_loss
from ..units import Unit

LARGEST = 1e10  # of one squared product


def estimate(study: Study) -> Estimate:
    """The scores, with standard errors over batches; one step a batch. It cannot stream: the last rule needs the whole sum."""
    flow = Flow(sums, mean_task_loss, "score of Model Optimizer's gradient method")
    found = estimate_flow(flow, study)
    total = sum(predictions(study.network, batch) for batch in study.data.batches)  # what the sum was divided by
    loss = found.loss * total
    stderr = None if found.stderr is None else found.stderr * total
    for u, unit in enumerate(study.units):
        chosen = _least_so_far(unit, study.formats, loss[u])
        loss[u] = loss[u, chosen]
        if stderr is not None:
            stderr[u] = stderr[u, chosen]
    return replace(found, loss=loss, stderr=stderr)


def sums(passage: Passage) -> Floats:
    """The scores of one batch, (units, formats)."""
    position = {unit.name: u for u, unit in enumerate(passage.units)}
    table = empty_table(passage.units, passage.formats)

    def visit(use: Use, rows: Rows, g: Tensor) -> None:
        weight = passage.network.module.get_parameter(f"{use.module}.weight").flatten(1)
        for f, fmt in measured_pairs(use.unit, passage.formats):
            made = passage.renderings(use.unit, fmt)[use.matrix]
            table[position[use.unit.name], f] += _score(made, weight, rows, g)

    passage.drive(visit)
    return table


def _score(made: Rendered, weight: Tensor, rows: Rows, g: Tensor) -> float:
    if rows.one_hot:
        return _clamped(g[0] * row_changes(made, weight, rows.x))
    changes = part_changes(made, weight, len(g))
    return sum(_clamped(g[part][:, outputs] * (rows.x[part] @ delta)) for part, outputs, delta in changes)


def _clamped(product: Tensor) -> float:
    return float(sum64(product.square().clamp(max=LARGEST)))


def _least_so_far(unit: Unit, formats: Sequence[str], scores: Floats) -> list[int]:
    """For every format the format whose score it takes: the least of those with no more bits."""
    admitted = [f for f in range(len(formats)) if np.isfinite(scores[f])]
    order = sorted(admitted, key=lambda f: (FORMATS[formats[f]].bits, unit.stored_bytes(FORMATS[formats[f]])))
    chosen = list(range(len(formats)))
    for before, f in pairwise(order):
        if scores[chosen[before]] < scores[f]:
            chosen[f] = chosen[before]
    return chosen
